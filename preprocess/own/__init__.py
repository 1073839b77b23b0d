"""What preprocess/own_videos.py needs to know about labels.csv."""
