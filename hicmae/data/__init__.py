"""From a list of clips to batches: what the two training stages and the evaluation read.

clip_list  records of clips; reads, checks and writes the lists
video      which frames, geometry, normalisation
audio      the waveform span of those frames, log-mel filter bank
masking    tube mask of the video tokens, random mask of the audio tokens
augment    training transforms of a labelled clip; mixup and cutmix of a batch
dataset    PretrainClips, LabelledClips, TestClips and their batches
decoding   frames of folders and video files; h264 decodes mp4 no further than needed
resizing   Pillow's pixels, faster where torch gives the very same
shard_index, packed  clips in WebDataset shards: which there are, and how they are read
streams    video and sound of a clip, wherever they are
loading    sampler, loader, seeding of one item, record of unreadable clips
"""
