"""Arrays out of files as other programs save them, by the libraries that write them."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from scipy.io import savemat
from scipy.sparse import csc_matrix
from tifffile import TiffFile, imwrite

from data.array_choice import read_array
from util.errors import UserError

KERNEL = np.arange(15, dtype=np.float64).reshape(3, 5)
OTHER = np.ones((2, 2))


def cells(*arrays):
    """A MATLAB cell array."""
    found = np.empty((1, len(arrays)), dtype=object)
    found[0, :] = arrays
    return found


def written(folder):
    """The kernel in every form, by what names it."""
    np.save(folder / "b=1,c#d: e.npy", KERNEL)
    np.savez(folder / "two.npz", kernel=KERNEL, other=OTHER)
    np.savez(folder / "one.npz", psf=KERNEL)
    np.savetxt(folder / "spaces.txt", KERNEL, header="a kernel")
    np.savetxt(folder / "commas.csv", KERNEL, delimiter=",")
    (folder / "excel.csv").write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(b";".join(b"%d" % n for n in row) for row in KERNEL)
    )
    savemat(folder / "one.mat", {"k": KERNEL})
    savemat(folder / "beside.mat", {"k": KERNEL, "sigma": 0.01, "name": "mine"})
    savemat(folder / "struct.mat", {"camera": {"psf": KERNEL, "sigma": 0.01}})
    savemat(folder / "sparse.mat", {"k": csc_matrix(KERNEL)})
    torch.save({"step": 3, "blur": {"psf": torch.from_numpy(KERNEL)}}, folder / "nested.pt")
    save_tensors({"kernel": torch.from_numpy(KERNEL).bfloat16()}, folder / "brain.safetensors")
    imwrite(folder / "double.tif", KERNEL)
    savemat(folder / "set.mat", {"kernels": cells(OTHER, KERNEL), "stack": np.stack([OTHER, 2 * OTHER], -1)})
    torch.save(torch.from_numpy(KERNEL), folder / "tensor.pt")
    torch.save({"a": torch.ones(2), "list": [torch.from_numpy(KERNEL)]}, folder / "dict.pth")
    save_file({"y": OTHER, "kernel": KERNEL}, folder / "state.safetensors")
    Image.fromarray(KERNEL.astype(np.uint8)).save(folder / "picture.png")
    plain = ["beside.mat", "struct.mat", "struct.mat#camera.psf", "sparse.mat", "nested.pt", "nested.pt#blur.psf"]
    plain += ["brain.safetensors", "double.tif"]
    plain += ["b=1,c#d: e.npy", "two.npz", "one.npz", "spaces.txt", "commas.csv", "excel.csv", "one.mat", "tensor.pt"]
    return [*plain, "two.npz#kernel", "set.mat#kernels[2]", "dict.pth#list[1]", "state.safetensors", "picture.png"]


def test_every_form_is_that_array(tmp_path):
    for choice in written(tmp_path):
        found = read_array(str(tmp_path / choice), "kernel")
        assert np.array_equal(found.array.squeeze(), KERNEL), choice
        assert not found.is_saved_state
    assert np.array_equal(read_array(str(tmp_path / "set.mat#stack[2]"), "kernel").array, 2 * OTHER)


def test_a_picture_of_many_bits_keeps_them(tmp_path):
    values = 257 + np.arange(15, dtype=np.uint16).reshape(3, 5)
    imwrite(tmp_path / "deep.tif", np.repeat(values[..., None], 3, -1), photometric="rgb")
    assert np.allclose(read_array(str(tmp_path / "deep.tif"), "kernel").array, values, rtol=1e-12)
    imwrite(tmp_path / "white_is_zero.tif", 65535 - values, photometric="miniswhite")
    assert np.array_equal(read_array(str(tmp_path / "white_is_zero.tif"), "kernel").array, values)


TEXTS = {
    "headed": "left,middle,right\n1,2.5,3\n4,5,6",
    "quoted": '"1","2.5","3"\n"4","5","6"',
    "commented": "% MATLAB\n1 2.5 3 % first\n4 5 6 // second",
    "nested": "[[1, 2.5, 3],\n [4, 5, 6]]",
    "nested in a line": "[[1, 2.5, 3], [4, 5, 6]]",
    "of MATLAB": "[1 2.5 3; 4 5 6]",
    "of MATLAB with commas": "[1, 2.5, 3; 4, 5, 6];",
    "without brackets": "1 2.5 3; 4 5 6",
    "of Fortran": "1D0 2.5d+00 3\n4 5 0.6D1",
    "with decimal commas": "1;2,5;3\n4;5,0;6",
    "with decimal commas and tabs": "1,0\t2,5\t3,0\n4\t5\t6",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
def test_numbers_are_written_in_many_ways(name, coding, tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[name], encoding=coding)
    assert np.array_equal(read_array(str(tmp_path / "a.txt"), "kernel").array, [[1, 2.5, 3], [4, 5, 6]])


SHAPES = {
    "a column of MATLAB": ("[0.25; 0.5; 0.25]", [[0.25], [0.5], [0.25]]),
    "a nested column": ("[[0.25],[0.5],[0.25]]", [[0.25], [0.5], [0.25]]),
    "no decimal comma in brackets": ("[0,1;1,0]", [[0, 1], [1, 0]]),
    "no decimal comma in nested brackets": ("[[1,2],[3,4]]", [[1, 2], [3, 4]]),
    "a nested row over two lines": ("[[1, 2,\n  3],\n [4, 5, 6]]", [[1, 2, 3], [4, 5, 6]]),
    "rows of MATLAB in lines": ("[1 2\n3 4]", [[1, 2], [3, 4]]),
    "quoted decimal commas": ('"0,1","0,2"\n"0,3","0,4"', [[0.1, 0.2], [0.3, 0.4]]),
    "quoted decimal commas and semicolons": ('"0,1";"0,2"', [[0.1, 0.2]]),
    "a separator at the end": ("0,1;0,2;\n0,3;0,4;", [[0.1, 0.2], [0.3, 0.4]]),
    "a blank row": (",,\n1,2,3", [[1, 2, 3]]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rows_and_columns_are_those_of_the_text(name, tmp_path):
    text, expected = SHAPES[name]
    (tmp_path / "a.csv").write_text(text)
    assert np.array_equal(read_array(str(tmp_path / "a.csv"), "kernel").array, expected)


@pytest.mark.parametrize("text", ["0.1,,0.3\n1,,2", ";0.2;0.3\n;1;2", "1\t\t2\n3\t\t4", '"1",,"2"', "[1,,2]"])
def test_an_empty_cell_is_not_passed_over(text, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match="it has an empty cell"):
        read_array(str(tmp_path / "a.csv"), "kernel")


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("set.mat", "expected one array, found 2: kernels, stack: name one, as in set.mat#NAME"),
        ("set.mat#kernels", "holds 2 arrays: say which, as in set.mat#NAME[1]"),
        ("set.mat#kernels[3]", "no entry 3: it holds 2"),
        ("set.mat#kernels[0]", "numbers from 1"),
        ("set.mat#kernel", "no array called 'kernel': it holds kernels, stack"),
        ("struct.mat#camera", "no array called 'camera': it holds camera.psf, camera.sigma"),
        ("nowhere.mat", "cannot be read as a .mat array"),
        ("nowhere.mat#kernels[3]", "nowhere.mat"),
    ],
)
def test_an_open_choice_is_told(choice, told, tmp_path):
    written(tmp_path)
    with pytest.raises(UserError) as caught:
        read_array(str(tmp_path / choice), "kernel")
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


def crashing_mat(path):
    """A file whose array is of a kind of number that there is not, by which SciPy's reader looks outside its table."""
    savemat(path, {"k": KERNEL})
    content = bytearray(path.read_bytes())
    content[177] = 4  # behind the file's header, and the array's flags, sides and name
    path.write_bytes(content)


def sideless_tiff(path):
    """A TIFF of 16 bits whose header says that it is no pixels wide."""
    imwrite(path, np.ones((8, 9), np.uint16))
    with TiffFile(path) as tiff:
        place = tiff.pages[0].tags["ImageWidth"].valueoffset
    content = bytearray(path.read_bytes())
    content[place : place + 2] = b"\0\0"
    path.write_bytes(content)


BROKEN = {
    "sideless.tif": sideless_tiff,
    "crash.mat": crashing_mat,
    "pickled.npz": lambda path: np.savez(path, a=np.array([{}], dtype=object)),
    "evil.pt": lambda path: torch.save(Evil(), path),
    "words.csv": lambda path: path.write_text("a kernel, honestly"),
    "ragged.txt": lambda path: path.write_text("1 2\n3"),
    "text.mat": lambda path: path.write_text("a kernel, honestly" * 20),
    "hdf5.mat": lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"),
    "words.mat": lambda path: savemat(path, {"a": "text"}),
    "struct.mat": lambda path: savemat(path, {"a": {"b": "text"}}),
    "vast.mat": lambda path: savemat(path, {"a": csc_matrix((10**6, 10**6))}),
    "list.pt": lambda path: torch.save([[torch.ones(3, 3), torch.ones(5, 5)]], path),
    "complex.pt": lambda path: torch.save(torch.ones(3, 3) * 1j, path),
    "repeated.pt": lambda path: torch.save(torch.zeros(1).expand(100_000, 100_000), path),
    "numpy.pt": lambda path: torch.save(KERNEL, path),
    "nan.csv": lambda path: path.write_text("1,nan"),
    "text.npz": lambda path: path.write_text("a kernel, honestly"),
}


@pytest.mark.parametrize("name", ["two.npz", "nested.pt", "large.mat"])
def test_what_unpacks_to_too_much_is_refused_before_it_is_read(name, tmp_path, monkeypatch):
    written(tmp_path)
    savemat(tmp_path / "large.mat", {"k": np.zeros((3000, 3000))}, do_compression=True)
    monkeypatch.setattr("data.array_choice.MAX_ENTRIES", 20)
    monkeypatch.setattr("data.array_choice.CHILD_MEMORY", 1 << 20)
    with pytest.raises(UserError, match=f"{name}: cannot be read.*its arrays take too much memory"):
        read_array(str(tmp_path / name), "kernel")


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_array_is_refused_in_a_line(name, tmp_path, capsys):
    BROKEN[name](tmp_path / name)
    with pytest.raises(UserError) as caught:
        read_array(str(tmp_path / name), "kernel")
    assert name in str(caught.value)
    assert str(caught.value).isprintable()
    assert "it ran" not in capsys.readouterr().out
