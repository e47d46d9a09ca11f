import hashlib
import http.server
import io
import json
import multiprocessing
import shutil
import tarfile
import threading
import time
import zipfile

import pytest
from torchvision.datasets.voc import DATASET_YEAR_DICT

from lit_detect import COCODetection, InputError, VOCDetection
from lit_detect.data import download
from lit_detect.data.download import COCO_ARCHIVES, VOC_ARCHIVES, Archive, fetch

YEARS = {"2007": ["image0", "image1"], "2007-test": ["image2"], "2012": ["image3", "image4"]}


class Server:
    """A server of a folder, which counts what it sends."""

    def __init__(self, folder):
        self.folder, self.sent = folder, []
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def do_GET(self):
                if self.headers["Method"] != "HEAD":  # torchvision asks for redirections first, in a way of its own
                    server.sent.append(self.path[1:])
                super().do_GET()

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def archive(self, name, folder, data=None, md5=None):
        if data is not None:
            (self.folder / name).write_bytes(data)
        md5 = md5 or hashlib.md5((self.folder / name).read_bytes()).hexdigest()
        return Archive(f"http://127.0.0.1:{self.http.server_port}/{name}", md5, folder)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def voc_server(server, voc_root, monkeypatch):
    """VOC's archives, each with one or two images."""
    for key, names in YEARS.items():
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            folder = f"VOCdevkit/VOC{key[:4]}"
            for name in names:
                tar.add(voc_root / "JPEGImages" / f"{name}.jpg", f"{folder}/JPEGImages/{name}.jpg")
                tar.add(voc_root / "Annotations" / f"{name}.xml", f"{folder}/Annotations/{name}.xml")
            for split in ("test",) if key == "2007-test" else ("train", "val", "trainval"):
                for file, text in ((f"{split}.txt", "\n".join(names)), (f"cat_{split}.txt", "".join(f"{name} -1\n" for name in names))):
                    entry = tarfile.TarInfo(f"{folder}/ImageSets/Main/{file}")
                    entry.size = len(text)
                    tar.addfile(entry, io.BytesIO(text.encode()))
        archive = server.archive(f"{key}.tar", folder, data.getvalue())
        monkeypatch.setitem(download.VOC_ARCHIVES, key, archive)
    return server


@pytest.fixture
def coco_server(server, coco_files, monkeypatch):
    """COCO's archives, of two images."""
    images, path = coco_files
    files = {
        "train2017": {f"train2017/{name}": (images / name).read_bytes() for name in ("a.jpg", "b.jpg")},
        "val2017": {f"val2017/{name}": (images / name).read_bytes() for name in ("a.jpg", "b.jpg")},
        "annotations": {f"annotations/instances_{split}2017.json": path.read_bytes() for split in ("train", "val")},
    }
    for key, members in files.items():
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        monkeypatch.setitem(download.COCO_ARCHIVES, key, server.archive(f"{key}.zip", key, data.getvalue()))
    return server


def coco(root, split="val"):
    return COCODetection(str(root / f"{split}2017"), str(root / f"annotations/instances_{split}2017.json"), download=True)


def left(folder):
    """What lies in a folder, but for locks, which are empty."""
    return sorted(path.name for path in folder.iterdir() if not (path.suffix == ".lock" and path.stat().st_size == 0))


def test_voc_is_fetched_once_when_it_is_first_read(voc_server, tmp_path):
    root = tmp_path / "data/deep/VOC2012"
    dataset = VOCDetection(str(root), "train", download=True)
    assert not (tmp_path / "data").exists()
    assert dataset.classes[:2] == ["aeroplane", "bicycle"]
    assert len(dataset) == 2
    assert dataset.load(0)[0].shape == (60, 80, 3)
    for image_set in ("train", "trainval", "cat_val"):
        assert len(VOCDetection(str(root), image_set, download=True)) == 2
    assert voc_server.sent == ["2012.tar"]
    assert left(root.parent) == ["VOC2012"]


def test_vocs_test_images_come_to_those_that_are_there(voc_server, tmp_path):
    root = tmp_path / "VOC2007"
    for image_set, count in (("test", 1), ("trainval", 2), ("test", 1), ("cat_test", 1)):
        assert len(VOCDetection(str(root), image_set, download=True)) == count
    assert voc_server.sent == ["2007-test.tar", "2007.tar"]
    assert left(root / "JPEGImages") == ["image0.jpg", "image1.jpg", "image2.jpg"]


def test_coco_is_fetched_once_when_only_classes_are_asked(coco_server, tmp_path):
    root = tmp_path / "coco"
    assert coco(root).classes == ["cat", "dog", "horse"]
    assert len(coco(root)) == 2
    assert coco_server.sent == ["annotations.zip", "val2017.zip"]
    assert len(coco(root, "train")) == 2
    assert coco_server.sent == ["annotations.zip", "val2017.zip", "train2017.zip"]
    assert left(root) == ["annotations", "train2017", "val2017"]


def test_nothing_is_fetched_unless_asked_or_needed(coco_server, voc_root, coco_files, tmp_path):
    with pytest.raises(InputError, match="could not read"):
        len(VOCDetection(str(tmp_path / "VOC2012"), "train"))
    assert len(VOCDetection(str(voc_root), "train", download=True)) == 5  # not called VOC2012, but there
    assert len(COCODetection(*map(str, coco_files), download=True)) == 2
    assert coco_server.sent == []


@pytest.mark.parametrize("half", ["aside", "empty"])
def test_a_half_extracted_folder_is_not_taken_for_a_whole_one(coco_server, tmp_path, half):
    root = tmp_path / "coco"
    folder = root / (".val2017.part/unpacked/val2017" if half == "aside" else "val2017")
    folder.mkdir(parents=True)
    if half == "aside":
        (folder / "a.jpg").write_bytes(b"half")
        (root / ".val2017.part/val2017.zip").write_bytes(b"half")
    assert [coco(root).load(index)[0].shape for index in range(2)] == [(60, 80, 3)] * 2
    assert left(root) == ["annotations", "val2017"]


def test_an_extraction_that_dies_is_done_again(voc_server, tmp_path, monkeypatch):
    root = tmp_path / "VOC2007"
    assert len(VOCDetection(str(root), "trainval", download=True)) == 2

    def dies(source, target):
        shutil.copytree(source / "JPEGImages", target / "JPEGImages", dirs_exist_ok=True)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download, "move", dies)
        with pytest.raises(InputError, match="No space left on device"):
            len(VOCDetection(str(root), "test", download=True))
    assert len(VOCDetection(str(root), "test", download=True)) == 1


def test_lists_come_after_what_they_list(tmp_path, monkeypatch):
    moved = []
    for path in ("ImageSets/Main/test.txt", "Annotations/a.xml", "JPEGImages/a.jpg"):
        (tmp_path / "source" / path).parent.mkdir(parents=True)
        (tmp_path / "source" / path).touch()
    (tmp_path / "target/JPEGImages").mkdir(parents=True)
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, target: (moved.append(self.name), replace(self, target)))
    download.move(tmp_path / "source", tmp_path / "target")
    assert moved == ["a.xml", "a.jpg", "test.txt"]


def test_a_broken_archive_is_named_and_fetched_again(server, coco_server, tmp_path, monkeypatch):
    whole = (server.folder / "val2017.zip").read_bytes()
    (server.folder / "val2017.zip").write_bytes(whole[: len(whole) // 2])
    file = tmp_path / "coco/.val2017.part/val2017.zip"
    with pytest.raises(
        InputError, match=rf"Expected to download http://127.*/val2017\.zip to {file} .* should have the MD5 sum [0-9a-f]{{32}}"
    ):
        len(coco(tmp_path / "coco"))
    (server.folder / "val2017.zip").write_bytes(whole)
    assert len(coco(tmp_path / "coco")) == 2
    assert left(tmp_path / "coco") == ["annotations", "val2017"]


def test_no_such_file_no_archive_and_no_server_are_named(server, tmp_path):
    (server.folder / "empty.zip").write_bytes(b"")
    (server.folder / "else.zip").write_bytes(b"PK\x05\x06" + bytes(18))  # whole, with nothing in it
    missing = server.archive("empty.zip", "a")._replace(url=f"http://127.0.0.1:{server.http.server_port}/none.zip")
    nobody = missing._replace(url="http://127.0.0.1:9/none.zip")
    for archive in (missing, nobody, server.archive("empty.zip", "a"), server.archive("else.zip", "a")):
        with pytest.raises(InputError, match=f"Expected to download {archive.url} to .*part/[a-z]+.zip and to unpack it but: "):
            fetch(archive, tmp_path / "data/target", tmp_path / "data/target/file")
    assert not (tmp_path / "data/target").exists()


def test_what_is_needed_is_not_in_the_archive(coco_server, tmp_path):
    with pytest.raises(InputError, match=r"Expected .*other\.json in .*annotations\.zip but it is not there"):
        fetch(COCO_ARCHIVES["annotations"], tmp_path / "annotations", tmp_path / "annotations/other.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: VOCDetection(str(root / "VOC2010"), "train", download=True), "Expected a folder called VOC2007 or VOC2012"),
        (
            lambda root: VOCDetection(str(root / "VOC2012"), "test", download=True),
            r"of VOC2012 to download \(train, val, trainval\) but got 'test'",
        ),
        (lambda root: VOCDetection(str(root / "VOC2007"), "vall", download=True), r"\(train, val, trainval, test\) but got 'vall'"),
        (
            lambda root: COCODetection(str(root / "val2014"), str(root / "annotations/a.json"), download=True),
            "Expected images as train2017 or",
        ),
        (
            lambda root: COCODetection(str(root / "val2017"), str(root / "instances_val2017.json"), download=True),
            "Expected images as train2017",
        ),
    ],
)
def test_what_cannot_be_downloaded_is_said(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        len(make(tmp_path))
    assert not list(tmp_path.iterdir())


def read(root, archives, ready, lengths):
    """In another process: read COCO at the same time as another."""
    download.COCO_ARCHIVES.update(archives)
    ready.wait()
    lengths.put(len(coco(root)))


def test_two_processes_at_once_fetch_once(coco_server, tmp_path):
    context = multiprocessing.get_context("forkserver")
    ready, lengths = context.Barrier(2), context.Queue()
    arguments = (tmp_path / "coco", dict(COCO_ARCHIVES), ready, lengths)
    processes = [context.Process(target=read, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    assert [lengths.get(timeout=300) for _ in range(2)] == [2, 2]
    for process in processes:
        process.join(60)
    assert coco_server.sent == ["annotations.zip", "val2017.zip"]


def test_the_second_waits_for_the_first(coco_server, tmp_path, monkeypatch):
    """The same in threads, with a download that takes its time."""
    slow = download.download_and_extract_archive
    monkeypatch.setattr(download, "download_and_extract_archive", lambda *args, **kwargs: (time.sleep(0.3), slow(*args, **kwargs)))
    archive, target = COCO_ARCHIVES["val2017"], tmp_path / "val2017"
    threads = [threading.Thread(target=fetch, args=(archive, target, target)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert coco_server.sent == ["val2017.zip"]


def test_the_tables_name_the_real_archives():
    assert VOC_ARCHIVES["2007-test"].md5 == DATASET_YEAR_DICT["2007-test"]["md5"]
    assert {archive.folder for key, archive in VOC_ARCHIVES.items() if key[:4] in ("2007", "2012")} == {
        "VOCdevkit/VOC2007",
        "VOCdevkit/VOC2012",
    }
    for archive in COCO_ARCHIVES.values():
        assert archive.url.startswith("http://images.cocodataset.org/")
        assert len(archive.md5) == 32
    json.dumps(COCO_ARCHIVES)
