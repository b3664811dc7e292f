"Optical flow between the frames of a clip, by OpenCV's DIS."
from typing import Any

import numpy as np

from ..errors import InputError

__all__ = ['flow_in_bytes']

RANGE = 20  # largest pixels a frame that the 8-bit flow holds, in each direction


def as_pixels(
    flow:np.ndarray, # uint8, from `flow_in_bytes`
)->np.ndarray: # Pixels
    "Flow in pixels from its 8 bits"
    return flow*(2*RANGE/255) - RANGE


def opencv(
    who:str, # What needs it, for the message
)->Any: # The module
    "OpenCV without threads, which do not survive the fork of a loading process; or an `InputError`"
    try:
        import cv2
    except ImportError:
        raise InputError(f"{who} computes optical flow with OpenCV: pip install 'sdfast[pretext]'") from None
    cv2.setNumThreads(0)
    return cv2


def flow_in_bytes(
    frames:np.ndarray, # uint8 `(T, H, W, 3)`, RGB
    stride:int=1, # Frames from the first to the second of each flow
    who:str='this', # What needs the flow, for the message if OpenCV is missing
)->np.ndarray: # uint8 `(T - stride, 2, H, W)`: -20 to 20 pixels is 0 to 255
    "Flow from each frame to the one `stride` later, horizontal and vertical, by the medium preset of DIS"
    cv2 = opencv(who)
    grey = [cv2.cvtColor(np.ascontiguousarray(f), cv2.COLOR_RGB2GRAY) for f in frames]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    def in_bytes(pixels): return ((pixels + RANGE)*255/(2*RANGE)).round().clip(0, 255).astype(np.uint8)
    flows = [in_bytes(dis.calc(a, b, None).transpose(2, 0, 1)) for a, b in zip(grey, grey[stride:])]
    return np.stack(flows) if flows else np.zeros((0, 2, *frames.shape[1:3]), np.uint8)
