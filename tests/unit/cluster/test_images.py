"""The image builder: what an image is made from, when it is built again, what is kept, what the chart is told."""

import re
from pathlib import Path

import pytest

from levada.cluster import images, oci
from levada.cluster.archive import ImageArchive
from levada.cluster.errors import ClusterError

ROOT = images.repository()
KNOWN = images.definitions(ROOT)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a base and one image that copies a file and a folder."""
    files = {
        "images/base/Containerfile": "FROM scratch\nADD root.tar /\n",
        "images/app/Containerfile": (
            "ARG BASE=debian:trixie-slim\nFROM ${BASE} AS build\nCOPY src one.txt /src/\n"
            "FROM ${BASE}\nCOPY --from=build /src /src\n"
        ),
        "one.txt": "one",
        "src/a.py": "a",
        "src/deep/b.py": "b",
        "src/__pycache__/a.pyc": "compiled",
        "other.txt": "not copied",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def of(checkout: Path) -> dict[str, str]:
    return images.inputs(checkout, images.definitions(checkout), "app")


def test_inputs_are_the_files_copied_the_containerfile_the_base_and_the_builder(checkout: Path) -> None:
    copied = {"one.txt", "src/a.py", "src/deep/b.py"}
    assert set(of(checkout)) == copied | {"images/app/Containerfile", "image base", "builder"}


@pytest.mark.parametrize("name", ["one.txt", "src/deep/b.py", "images/app/Containerfile", "images/base/Containerfile"])
def test_a_changed_input_changes_the_tag_and_is_named(checkout: Path, name: str) -> None:
    before = of(checkout)
    last = images.Built(images.tag(before), "sha256:0", 1, 1, 1.0, before)
    with (checkout / name).open("a") as file:
        file.write("\n# more\n")
    after = of(checkout)
    assert images.tag(after) != images.tag(before)
    expected = "image base" if name == "images/base/Containerfile" else name
    assert images.reason(after, last) == f"{expected} changed"


def test_what_is_not_copied_or_compiled_or_only_touched_changes_nothing(checkout: Path) -> None:
    before = images.tag(of(checkout))
    (checkout / "other.txt").write_text("changed")
    (checkout / "src/__pycache__/a.pyc").write_text("compiled again")
    (checkout / "src/a.py").touch()
    assert images.tag(of(checkout)) == before


def test_an_executable_bit_is_an_input(checkout: Path) -> None:
    before = images.tag(of(checkout))
    (checkout / "src/a.py").chmod(0o755)
    assert images.tag(of(checkout)) != before


def test_a_missing_file_names_the_containerfile_and_the_file(checkout: Path) -> None:
    (checkout / "one.txt").unlink()
    with pytest.raises(ClusterError, match=r"images/app/Containerfile copies one\.txt"):
        of(checkout)


def test_a_base_without_a_stand_in_is_refused(checkout: Path) -> None:
    path = checkout / "images/app/Containerfile"
    path.write_text(path.read_text().replace("debian:trixie-slim", "alpine:3"))
    with pytest.raises(ClusterError, match="alpine:3 has no stand-in"):
        images.definitions(checkout)


def test_reason_for_a_first_and_for_a_lost_archive(checkout: Path) -> None:
    inputs = of(checkout)
    assert images.reason(inputs, None) == "not built yet"
    same = images.Built(images.tag(inputs), "sha256:0", 1, 1, 1.0, inputs)
    assert images.reason(inputs, same) == "its archive is gone"


def test_store_keeps_one_archive_an_image_and_spares_names_that_begin_alike(tmp_path: Path) -> None:
    store = images.Store(tmp_path / "images")

    def keep(name: str, letter: str) -> images.Built:
        built = images.Built(letter * 16, f"sha256:{letter}", 10, 5, 1.0, {"file": letter})
        written = tmp_path / "written.tar"
        written.write_text(letter)
        store.keep(name, built, written)
        return built

    keep("postgres", "a")
    exporter = keep("postgres-exporter", "a")
    new = keep("postgres", "b")
    assert store.last("postgres") == new
    assert store.current("postgres", "b" * 16) == new
    assert store.current("postgres", "a" * 16) is None
    assert store.current("postgres-exporter", "a" * 16) == exporter
    tars = sorted(path.name for path in store.folder.glob("*.tar"))
    assert tars == [f"postgres-{'b' * 16}.tar", f"postgres-exporter-{'a' * 16}.tar"]
    store.archive("postgres", new).path.unlink()
    assert store.current("postgres", "b" * 16) is None


def test_layers_are_read_from_an_oci_archive(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"x" * 5000)
    archive = oci.write(tmp_path, name="levada/x", tag="1", files={"program": program}, entrypoint=["/program"])
    [(digest, size)] = images.layers(archive.path).items()
    assert digest.startswith("sha256:")
    assert size > 5000


def test_values_name_every_image_where_the_chart_takes_it(tmp_path: Path) -> None:
    assert set(images.VALUES_KEYS) == set(images.names())
    archives = [ImageArchive(f"levada/{name}", "t", "sha256:d", tmp_path) for name in images.names()]
    values = images.values(archives)
    block = {"repository": "levada/postgres-exporter", "tag": "t", "digest": "sha256:d"}
    assert values["stores"]["postgres"]["exporter"]["image"] == block
    assert values["stores"]["postgres"]["image"]["repository"] == "levada/postgres"
    assert values["global"]["image"]["tools"]["repository"] == "levada/levada"


def test_pip_settings_keep_what_reaches_the_index_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        ":env:.find-links='/wheels'\n:env:.index-url='https://b.example/simple'\nglobal.cert='/etc/ca.crt'\n"
        "global.index-url='https://a.example/simple'\nglobal.default-timeout='30'\n"
    )
    monkeypatch.setattr(images, "run", lambda argv: listed)
    assert images.pip_settings() == {"cert": "/etc/ca.crt", "index-url": "https://b.example/simple", "timeout": "30"}


def test_mirror_takes_the_first_of_debian_and_of_its_security_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        "Debian|http://mirror.example/debian/\nDebian|http://second.example/debian/\n"
        "Other|http://other.example/\nDebian-Security|http://mirror.example/security/\n"
    )
    monkeypatch.setattr(images, "run", lambda argv: listed)
    assert images.mirror() == [
        "deb http://mirror.example/debian/ trixie main",
        "deb http://mirror.example/debian/ trixie-updates main",
        "deb http://mirror.example/security/ trixie-security main",
    ]
    monkeypatch.setattr(images, "run", lambda argv: "Ubuntu|http://mirror.example/\n")
    with pytest.raises(ClusterError, match="knows no Debian mirror"):
        images.mirror()


def test_an_unknown_image_is_named_with_those_there_are() -> None:
    from levada.cluster.progress import Silent

    with pytest.raises(ClusterError, match=r"no such image: kafak; there are .*kafka"):
        images.build(["kafak"], Silent())


@pytest.mark.parametrize("name", images.names())
def test_containerfile_copies_what_is_there_and_runs_as_a_number(name: str) -> None:
    assert images.inputs(ROOT, KNOWN, name)
    assert re.search(r"^USER \d+(:0)?$", KNOWN[name].text, re.MULTILINE)


LOCKS = sorted([*ROOT.glob("images/*/requirements.txt"), *ROOT.glob("requirements/*.txt")])


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(ROOT)))
def test_a_lock_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, re.MULTILINE)
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        if re.match(r"[A-Za-z0-9]", block):
            assert re.match(r"[\w.-]+==\S+", block)
            assert "--hash=sha256:" in block
