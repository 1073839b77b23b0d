"""Lists of clips: what the scripts in `preprocess/` share to make and check them.

data_sets    the protocols of the nine labelled data sets, and the trees they expect
building     from a protocol and the files that are there to lists, tables and reports
clips        a clip on its way into a list; the checks of a fold; all files that are written
files        find face folders and wavs, and measure them
annotations  read official csv and text files, with file:line errors
labels       labels.csv of one's own videos, and the draw of test clips
inspection   open clips, say what is wrong with them, and keep that for the next run
"""
