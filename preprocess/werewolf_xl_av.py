from data_sets import werewolf_xl

raise SystemExit(werewolf_xl())
