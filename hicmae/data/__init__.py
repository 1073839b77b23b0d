"""From a list of clips to batches: what the two training stages and the evaluation read.

clip_list  records of clips; reads, checks and writes the lists
video      which frames, decoding (mp4 or a folder of frames), geometry, normalisation
audio      the waveform span of those frames, log-mel filter bank
masking    tube mask of the video tokens, random mask of the audio tokens
augment    training transforms of a labelled clip; mixup and cutmix of a batch
dataset    PretrainClips, LabelledClips, TestClips and their batches
loading    sampler, loader, seeding of one item, record of unreadable clips
"""
