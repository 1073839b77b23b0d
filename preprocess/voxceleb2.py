# Makes the list of VoxCeleb2; --help tells what it needs.
from data_sets import voxceleb2

raise SystemExit(voxceleb2())
