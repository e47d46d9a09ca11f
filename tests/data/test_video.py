import pickle

import cv2
import numpy as np
import pytest

from lit_detect import ImageFolder, InputError, Video
from lit_detect.data.folder import to_predict
from tests.conftest import write_video


def level(video, index):
    return round(float(video.load(index)[0].mean()) / 10)


def test_frames_are_found_in_any_order_and_after_pickling(tmp_path):
    video = Video(str(write_video(tmp_path / "clip.mp4", [np.full((48, 64, 3), 10 * n, np.uint8) for n in range(20)], rate=12.5)))
    assert (len(video), video.rate) == (20, 12.5)
    assert [level(video, index) for index in range(20)] == list(range(20))
    assert [level(video, index) for index in (3, 4, 17, 5, 5, 0, 19)] == [3, 4, 17, 5, 5, 0, 19]
    other = pickle.loads(pickle.dumps(video))
    assert (level(other, 7), level(video, 1)) == (7, 1)
    image, target = video.load(2)
    assert (image.shape, image.dtype, target["image_id"], target["boxes"].shape) == ((48, 64, 3), np.uint8, 2, (0, 4))
    assert video.file_name(12) == "clip_000012"


def test_frames_are_rgb(tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 200
    image, _ = Video(str(write_video(tmp_path / "clip.mp4", [red] * 3))).load(1)
    assert np.abs(image.mean(axis=(0, 1)) - [200, 0, 0]).max() < 10


def test_what_is_no_video_is_refused_by_name(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    for name, message in [("broken.mp4", "not a video"), ("none.mp4", "no such file")]:
        with pytest.raises(InputError, match=f"Expected a video but could not read .*{name}: {message}"):
            len(Video(str(tmp_path / name)))


def test_a_video_that_is_cut_off_has_the_frames_that_can_be_decoded(tmp_path):
    rng = np.random.default_rng(0)
    path = write_video(tmp_path / "clip.avi", [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(20)], codec="MJPG")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    video = Video(str(path))
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 20  # what the file says of itself
    assert 5 < len(video) < 15
    assert video.load(len(video) - 1)[0].shape == (48, 64, 3)


def test_the_suffix_tells_a_video(tmp_path):
    (tmp_path / "odd.mp4").mkdir()
    assert isinstance(to_predict("a.MP4"), Video)
    assert isinstance(to_predict(str(tmp_path / "odd.mp4")), ImageFolder)
    assert isinstance(to_predict("a.jpg"), ImageFolder)


def test_frames_of_absurd_size_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", [np.zeros((48, 64, 3), np.uint8)] * 2)
    monkeypatch.setattr("lit_detect.data.video.MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(InputError, match=r"at most 3071 pixels but .*clip\.mp4 declares 64 x 48"):
        len(Video(str(path)))


@pytest.mark.parametrize(
    "playlist", ["#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_a_playlist_does_not_lead_to_other_files(tmp_path, playlist):
    secret = write_video(tmp_path / "secret.mp4", [np.zeros((48, 64, 3), np.uint8)] * 2)
    (tmp_path / "a.mp4").write_text(playlist.format(secret))
    with pytest.raises(InputError, match="not a video"):
        len(Video(str(tmp_path / "a.mp4")))
