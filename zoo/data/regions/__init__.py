"""Regions of pictures: features and boxes, the files that hold them, the detectors they came
from.
"""
