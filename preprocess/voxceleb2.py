from data_sets import voxceleb2

raise SystemExit(voxceleb2())
