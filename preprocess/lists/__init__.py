"""Lists of clips: what the scripts in `preprocess/` share to make and check them.

data_sets    the protocols of the nine labelled data sets, and the trees they expect
building     from a protocol and the files that are there to lists, tables and reports
clips        a clip on its way into a list: its files, found by name and measured
writing      the checks of lists, and all files that are written
any_list     read a list of any kind, with its lines of another kind, for check_lists.py
annotations  read official csv and text files and one's own labels.csv, with file:line errors
"""
