"""Lists of clips: what the scripts in `preprocess/` share to make and check them.

clips.py        what a line of a list needs to know; what is left out, with its reason; whole files
folds.py        check and write the train / test lists of a fold
files.py        find face folders and wavs; say what was expected and found in a wrong folder
annotations.py  read the official csv and text files, with file:line errors
probe.py        header of every wav, number of frames, in parallel with a progress bar
plan.py         what a data set's protocol asks for, matched with the files that are there
tables.py       plain tables of clips by fold, class and speaker, and durations
command.py      the command line and the run of a list script
shards.py       --shard i/n, and results that a stopped run picks up again
inspection.py   open one clip and say what is wrong with it
leaks.py        clips twice in a list, or in training and test, by name and by content
"""
