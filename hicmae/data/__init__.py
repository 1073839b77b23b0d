"""From a list of clips to batches: what the two training stages and the evaluation read.

clip_list  records of clips; reads, checks and writes lists and indexes of shards; class names
splits     speakers, validation clips held out, shares of labels, clips of one item
video      which frames, folders of frames, geometry, pixels
media      films and sounds: frames by number for training, by time for inference
audio      the waveform span of those frames, log-mel filter bank
shards     how clips in WebDataset shards are read
masking    tube mask of the video tokens, random mask of the audio tokens
augment    training transforms of a labelled clip; mixup and cutmix of a batch
batches    what data sets give and models take
dataset    PretrainClips, LabelledClips, TestClips
loader     order, unreadable clips, workers
"""
