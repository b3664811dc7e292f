"Names of the shared real and broken videos, and a function that writes videos with any codec."
import av

# In shared/data/torture. Frames decoded by PyAV from first to last, from the table in the data's README
TORTURE = {
    'real/av1_video.mkv': 125, 'real/bt709_full_range.mp4': 30, 'real/h264_10bits.mp4': 30, 'real/h265_10bits.mp4': 30,
    'real/nasa_13013.mp4': 325, 'real/var_fps_video.mp4': 300, 'real/unordered.mov': 4, 'real/video_0.mov': 3,
    'real/video_90.mov': 3, 'real/test.avi': 164, 'real/part_0.mp4': 32, 'real/anomaly_detection.mpg': 250,
    'real/carphone_distorted.mp4': 120, 'real/cockatoo.mp4': 280, 'real/newtonscradle.gif': 36,
    'real/v_Punch_g03_c01.avi': 108, 'real/person01_jogging_d1_uncomp.avi': 415, 'real/Kickflip83.mov': 31,
    'made/one_frame.mp4': 1, 'made/two_frames.mkv': 2, 'made/odd_161x121.mkv': 24, 'made/tall_32x720.mp4': 20,
    'made/long_gop_600.mp4': 600, 'made/all_intra_mjpeg.avi': 25, 'made/gray8.mkv': 25, 'made/mpeg2_ts.ts': 40,
    'made/fps_1.mp4': 8, 'made/fps_ntsc_film.mkv': 24, 'made/anamorphic_sar_64_45.mkv': 16,
    'made/audio_longer_than_video.mp4': 15, 'made/vfr_wild.mkv': 60, 'made/fragmented.mp4': 40,
    'made/first_keyframe_dropped.ts': 30, 'made/truncated_half_original.avi': 52, 'made/UPPER_EXT.AVI': 108,
    'made/mp4_named_as.avi': 36, 'made/black_all.mp4': 40}
# Those that cannot be decoded
BROKEN = [
    'real/nasa_13013.mp4.audio.mp3', 'made/truncated_90pct_original.mp4', 'made/zero_bytes.mp4', 'made/text_named.mp4']
BREAKS_OFF = 'real/corrupted.mp4'  # of its 50 frames one cannot be decoded, and those after it are damaged
CUT = 'made/truncated_half_original.avi'  # its last frame is incomplete
# Those that are decoded in no time
SMALL = [
    'real/h264_10bits.mp4', 'real/unordered.mov', 'real/video_90.mov', 'real/carphone_distorted.mp4',
    'made/one_frame.mp4', 'made/two_frames.mkv', 'made/tall_32x720.mp4', 'made/fps_1.mp4',
    'made/anamorphic_sar_64_45.mkv', 'made/black_all.mp4', 'made/first_keyframe_dropped.ts', 'made/fragmented.mp4']


def encode(path, frames, codec='ffv1', fmt='yuv444p', **options):
    "Write RGB frames `(T, H, W, 3)`"
    with av.open(str(path), 'w') as f:
        s = f.add_stream(codec, rate=25)
        s.height, s.width = frames.shape[1:3]
        s.pix_fmt, s.options = fmt, options
        for x in frames: f.mux(s.encode(av.VideoFrame.from_ndarray(x, format='rgb24')))
        f.mux(s.encode())
    return path
