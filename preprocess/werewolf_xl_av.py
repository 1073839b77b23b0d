# Makes the lists of Werewolf-XL; --help tells what it needs.
from data_sets import werewolf_xl

raise SystemExit(werewolf_xl())
