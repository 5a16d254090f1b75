"""The layer over cuBLASLt: against a library that checks it, the header, and the library itself."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from ctypes import byref, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from pathlib import Path

import numpy as np
import pytest

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels import cublaslt
from fastneuron.kernels.cublaslt import (
    CublasLtError,
    Epilogue,
    Heuristic,
    Library,
    Matmul,
    Product,
    mask_bits,
)
from fastneuron.testing import Precision, assert_near, assert_within, dense, exact, matmul, rounded

#: Rows, columns, terms: none equal, so that no two can be swapped unseen.
SHAPES = [(1, 2, 3), (5, 4, 7), (7, 9, 2), (4, 1, 6), (3, 130, 5)]
SCRATCH = np.zeros(4096 + 64, np.uint8)


#: Bytes behind an array in which a planted fault may read and write: it must not reach what others
#: hold, or the process ends long after the test.
BEHIND = 4096


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes, with room behind it."""
    room = np.zeros(array.nbytes + 64 + BEHIND, np.uint8)
    first = -room.ctypes.data % 64
    copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.fixture
def library(fake_cublaslt: ctypes.CDLL) -> Library:
    for name, value in (("starts", 1), ("refused", 0), ("reduction", 0), ("numerics", 0x80000)):
        fake_cublaslt.fake_set(name.encode(), value)
    return Library(fake_cublaslt, "fake")


def multiply(library, product: Product, left, right, vector=None, mask=None, which: int = 0):
    """The product; left and right are (rows, terms) and (terms, columns)."""
    left = aligned(left.T if product.left_transposed else left)
    right = aligned(right.T if product.right_transposed else right)
    out = aligned(np.full((product.rows, product.columns), np.nan, product.dtype))
    places = [0 if each is None else each.ctypes.data for each in (left, right, out, vector, mask)]
    plan = Matmul(library, product, *places)
    algorithms = plan.algorithms(4096, 8)
    assert algorithms, f"{product}: no algorithm"
    workspace = aligned(SCRATCH)
    plan.run(algorithms[which], workspace.ctypes.data, 0)
    return out


def drawn(shape, dtype: str = "float32", seed: int = 0):
    rows, columns, terms = shape
    rng = np.random.default_rng(seed)
    sizes = (rows, terms), (terms, columns), (columns,)
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def whole(shape, dtype: str = "float32"):
    rows, columns, terms = shape
    rng = np.random.default_rng(sum(shape))
    sizes = (rows, terms), (terms, columns), (columns,)
    return [rng.integers(-3, 4, size).astype(dtype) for size in sizes]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_are_within_their_bounds(library, shape, turned, dtype) -> None:
    left, right, _ = drawn(shape, dtype)
    product = Product(*shape, *turned, dtype)
    want = matmul(exact(left), exact(right), Precision.of(dtype))
    for which in (0, 1):
        got = multiply(library, product, left, right, which=which)
        assert_within(got, want, f"{product}, algorithm {which}")


def test_a_hundred_runs_have_the_same_bits(library) -> None:
    left, right, _ = drawn((5, 6, 50))
    product = Product(5, 6, 50)
    first = multiply(library, product, left, right)
    for _ in range(100):
        np.testing.assert_array_equal(multiply(library, product, left, right), first)
    # Bits that another algorithm does not give: the test would see a change.
    assert (multiply(library, product, left, right, which=1) != first).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("epilogue", [Epilogue.BIAS, Epilogue.RELU_BIAS, Epilogue.RELU])
def test_epilogues_of_the_forward_pass_are_exact(library, shape, epilogue) -> None:
    left, right, bias = whole(shape)
    got = multiply(library, Product(*shape, epilogue=epilogue), left, right, aligned(bias))
    want = left @ right + (bias if epilogue & 4 else 0)
    np.testing.assert_array_equal(got, np.maximum(want, 0) if epilogue & 2 else want)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_vectors", [True, False])
def test_a_mask_goes_from_the_forward_to_the_backward_pass(library, shape, with_vectors) -> None:
    left, right, bias = whole(shape)
    rows, columns, _ = shape
    mask = aligned(np.full((rows, mask_bits(columns) // 8), 0xAA, np.uint8))
    epilogue = Epilogue.RELU_AUX_BIAS if with_vectors else Epilogue.RELU_AUX
    got = multiply(library, Product(*shape, epilogue=epilogue), left, right, aligned(bias), mask)
    want = np.maximum(left @ right + with_vectors * bias, 0)
    np.testing.assert_array_equal(got, want)
    bits = np.unpackbits(mask, axis=1, bitorder="little")[:, :columns]
    np.testing.assert_array_equal(bits, want > 0)
    dz, w, _ = whole((rows, columns, 11))
    epilogue = Epilogue.DRELU_BGRAD if with_vectors else Epilogue.DRELU
    product = Product(rows, columns, 11, right_transposed=True, epilogue=epilogue)
    sums = aligned(np.full(columns, np.nan, "float32"))
    got = multiply(library, product, dz, w, sums, mask)
    np.testing.assert_array_equal(got, dz @ w * (want > 0))
    if with_vectors:
        np.testing.assert_array_equal(sums, got.sum(0))
    else:
        assert np.isnan(sums).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_gradient_brings_its_bias_gradient(library, shape) -> None:
    left, right, _ = whole(shape)
    product = Product(*shape, left_transposed=True, epilogue=Epilogue.BGRADA)
    sums = aligned(np.full(shape[1], np.nan, "float32"))
    np.testing.assert_array_equal(multiply(library, product, left, right, sums), left @ right)
    np.testing.assert_array_equal(sums, right.sum(0))


@pytest.mark.parametrize(
    ("precision", "compute"), [("float32", 68), ("tf32", 77), ("bfloat16", 75)]
)
def test_precisions_are_within_their_bounds(library, fake_cublaslt, precision, compute) -> None:
    left, right, bias = drawn((40, 30, 200))
    product = Product(40, 30, 200, precision=precision, epilogue=Epilogue.BIAS)
    got = multiply(library, product, left, right, aligned(bias))
    assert fake_cublaslt.fake_get(b"last") == compute
    factors = rounded(exact(left), precision), rounded(exact(right), precision)
    assert_within(got, dense(*factors, exact(bias), Precision.of("float32")), precision)
    want = left.astype("float64") @ right + bias
    assert_near(got, want, precision)
    finer = {"tf32": "float32", "bfloat16": "tf32"}.get(precision)
    if finer:  # the limits tell the precisions apart
        with pytest.raises(AssertionError, match="relative norm"):
            assert_near(got, want, finer)


def test_only_algorithms_that_keep_their_word_are_offered(library, fake_cublaslt) -> None:
    places = [aligned(np.zeros(64, "float32")).ctypes.data for _ in range(3)]

    def offered(precision: str = "float32", epilogue: Epilogue = Epilogue.DEFAULT) -> int:
        product = Product(4, 4, 4, precision=precision, epilogue=epilogue)
        return len(Matmul(library, product, *places).algorithms(4096, 8))

    assert offered() == 2  # the third says itself that it cannot
    for reduction, want in ((1, 0), (2, 2), (4, 0), (0, 2)):
        fake_cublaslt.fake_set(b"reduction", reduction)
        assert offered() == want, f"reduction scheme {reduction}"
    for numerics in (1 << 16, 1 << 17, 1 << 18, 1 << 22, 1 << 23):
        fake_cublaslt.fake_set(b"numerics", numerics)
        assert offered() == 0, f"factors of fewer bits: {numerics:#x}"
        assert offered("tf32") == 2
    fake_cublaslt.fake_set(b"refused", 2)
    assert offered("tf32", Epilogue.RELU) == 0


@pytest.mark.parametrize("where", ["left", "right", "out", "vector", "mask"])
@pytest.mark.parametrize("address", [0, 4, 24])
def test_an_address_that_is_missing_or_not_aligned_is_named(library, where, address) -> None:
    places = dict.fromkeys(("left", "right", "out", "vector", "mask"), 64) | {where: address}
    product = Product(4, 4, 4, epilogue=Epilogue.RELU_AUX_BIAS)
    with pytest.raises(ValueError, match=rf"{where} is at {address:#x}"):
        Matmul(library, product, **places)


def test_descriptions_are_given_back(library, fake_cublaslt) -> None:
    gc.collect()
    before = fake_cublaslt.fake_get(b"alive")
    left, right, _ = drawn((4, 5, 6))
    multiply(library, Product(4, 5, 6), left, right)
    gc.collect()
    assert fake_cublaslt.fake_get(b"alive") == before


class TestPlantedFaults:
    """Each fault in the layer is found by the library's checks or by the bounds."""

    def check(self, library) -> None:
        left, right, bias = drawn((6, 4, 9))
        product = Product(6, 4, 9, left_transposed=True, epilogue=Epilogue.BIAS)
        got = multiply(library, product, left, right, aligned(bias))
        want = dense(exact(left), exact(right), exact(bias), Precision.of("float32"))
        assert_within(got, want)

    def caught(self, library, message: str) -> None:
        with pytest.raises((AssertionError, CublasLtError), match=message):
            self.check(library)

    def plant(self, monkeypatch, library, name: str, change) -> None:
        """Have a function called with other arguments, or not at all."""
        functions = dict(library._functions)
        right = functions[name]

        def wrong(*arguments):
            changed = change(list(arguments))
            return 0 if changed is None else right(*changed)

        monkeypatch.setattr(library, "_functions", {**functions, name: wrong})

    def test_without_a_fault_nothing_is_found(self, library) -> None:
        self.check(library)

    def test_swapped_leading_dimension(self, library, monkeypatch) -> None:
        def swap(a):
            return [*a[:4], a[3]]  # columns for rows

        self.plant(monkeypatch, library, "cublasLtMatrixLayoutCreate", swap)
        self.caught(library, "leading dimension|outside the bound")

    def test_padded_leading_dimension(self, library, monkeypatch) -> None:
        def pad(a):
            return [*a[:4], a[4] + (a[2] == 4 and a[3] == 6)]

        self.plant(monkeypatch, library, "cublasLtMatrixLayoutCreate", pad)
        self.caught(library, "outside the bound")

    def test_swapped_operands(self, library, monkeypatch) -> None:
        def swap(a):
            a[3], a[5] = a[5], a[3]
            return a

        self.plant(monkeypatch, library, "cublasLtMatmul", swap)
        self.caught(library, "outside the bound")

    @pytest.mark.parametrize(
        ("attribute", "message"),
        [(8, "without its vector"), (7, "outside the bound"), (4, "do not fit")],
        ids=["missing bias", "missing epilogue", "missing transpose"],
    )
    def test_missing_attribute(self, library, monkeypatch, attribute, message) -> None:
        def drop(a):
            return None if a[1] == attribute else a

        self.plant(monkeypatch, library, "cublasLtMatmulDescSetAttribute", drop)
        self.caught(library, message)

    @pytest.mark.parametrize("compute", [77, 75], ids=["tf32", "bfloat16"])
    def test_wrong_compute_type(self, library, monkeypatch, compute) -> None:
        def lower(a):
            return [a[0], compute, a[2]]

        self.plant(monkeypatch, library, "cublasLtMatmulDescCreate", lower)
        self.caught(library, "outside the bound")

    @pytest.mark.parametrize(
        ("attribute", "message"),
        [(1, "no algorithm"), (3, "reductions"), (5, "alignment"), (8, "alignment")],
        ids=["workspace", "reductions", "alignment of A", "alignment of D"],
    )
    def test_missing_preference(self, library, monkeypatch, attribute, message) -> None:
        def drop(a):
            return None if a[1] == attribute else a

        self.plant(monkeypatch, library, "cublasLtMatmulPreferenceSetAttribute", drop)
        self.caught(library, message)

    def test_algorithm_of_another_shape(self, library) -> None:
        places = [aligned(np.zeros(64, "float32")).ctypes.data for _ in range(3)]
        one, other = (Matmul(library, Product(4, 4, k), *places) for k in (3, 4))
        with pytest.raises(CublasLtError, match="another product"):
            other.run(one.algorithms(4096, 1)[0], aligned(SCRATCH).ctypes.data, 0)


def test_a_library_that_does_not_start_says_so(library, fake_cublaslt) -> None:
    fake_cublaslt.fake_set(b"starts", 0)
    with pytest.raises(BackendUnavailable, match=r"cuBLASLt 130002 \(fake\) does not start.*card"):
        Library(fake_cublaslt, "fake")


def test_another_library_is_not_taken_for_it() -> None:
    with pytest.raises(BackendUnavailable, match="no cublasLtGetVersion"):
        Library(ctypes.CDLL(None), "this process")


def test_where_there_is_none_the_message_says_how_to_get_it(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(cublaslt, "_found_path", list)
    monkeypatch.setattr(cublaslt.ctypes, "CDLL", missing)
    with pytest.raises(BackendUnavailable, match=r"libcublasLt\.so\.13.*pip install nvidia-cublas"):
        cublaslt.load.__wrapped__()


def header() -> Path | None:
    """cublasLt.h: of a toolkit, or of the package nvidia-cublas."""
    places = [Path("/usr/local/cuda/include")]
    places += [p for folder in sys.path for p in Path(folder).glob("nvidia/*/include")]
    return next((place for place in places if (place / "cublasLt.h").exists()), None)


#: Names of the header, and what stands for them here.
VALUES = {
    **{f"CUBLASLT_EPILOGUE_{each.name}": int(each) for each in Epilogue},
    "CUDA_R_32F": cublaslt._TYPES["float32"],
    "CUDA_R_64F": cublaslt._TYPES["float64"],
    "CUBLAS_COMPUTE_64F": cublaslt._COMPUTE["float64", "float32"],
    "CUBLAS_COMPUTE_32F": cublaslt._COMPUTE["float32", "float32"],
    "CUBLAS_COMPUTE_32F_FAST_TF32": cublaslt._COMPUTE["float32", "tf32"],
    "CUBLAS_COMPUTE_32F_FAST_16BF": cublaslt._COMPUTE["float32", "bfloat16"],
    "CUBLAS_OP_T": cublaslt._TRANSPOSED,
    "CUBLAS_STATUS_NOT_SUPPORTED": cublaslt._NOT_SUPPORTED,
    "CUBLASLT_MATMUL_DESC_TRANSA": cublaslt._TRANSA,
    "CUBLASLT_MATMUL_DESC_TRANSB": cublaslt._TRANSB,
    "CUBLASLT_MATMUL_DESC_EPILOGUE": cublaslt._EPILOGUE,
    "CUBLASLT_MATMUL_DESC_BIAS_POINTER": cublaslt._BIAS_POINTER,
    "CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER": cublaslt._AUX_POINTER,
    "CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD": cublaslt._AUX_LD,
    "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES": cublaslt._MAX_WORKSPACE,
    "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK": cublaslt._REDUCTION_MASK,
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES": cublaslt._MIN_ALIGNMENTS[0],
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES": cublaslt._MIN_ALIGNMENTS[1],
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES": cublaslt._MIN_ALIGNMENTS[2],
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES": cublaslt._MIN_ALIGNMENTS[3],
    "CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME": cublaslt._CONFIG_REDUCTION,
    "CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS": cublaslt._CAP_NUMERICS,
    "CUBLASLT_REDUCTION_SCHEME_NONE": cublaslt._NO_REDUCTION,
    "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE": cublaslt._SEPARATE_REDUCTION,
    " | ".join(
        f"CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_{name}"
        for name in ("16F", "16BF", "TF32", "8F_E4M3", "8F_E5M2")
    ): cublaslt._FEWER_BITS,
    "sizeof(cublasLtMatmulAlgo_t)": sizeof(c_uint64 * 8),
    "sizeof(cublasLtMatmulHeuristicResult_t)": sizeof(Heuristic),
    "offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize)": Heuristic.workspace.offset,
    "offsetof(cublasLtMatmulHeuristicResult_t, state)": Heuristic.state.offset,
}


def test_names_have_the_values_of_the_header(tmp_path: Path) -> None:
    folder = header()
    if folder is None:
        pytest.skip("there is no cublasLt.h (pip install nvidia-cublas)")
    lines = [f'  printf("%llu\\n", (unsigned long long)({name}));' for name in VALUES]
    source = tmp_path / "values.c"
    head = "#include <stddef.h>\n#include <stdio.h>\n#include <cublasLt.h>\n"
    source.write_text(head + "int main(void) {\n" + "\n".join(lines) + "\n}\n")
    # Whichever folder has the rest of CUDA's headers.
    others = Path("/usr/local").glob("cuda*/include")
    places = [f"-I{place}" for place in (folder, *others)]
    try:
        built = subprocess.run(
            ["cc", "-w", *places, "-o", tmp_path / "values", source], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    if "No such file" in built.stderr:
        pytest.skip(f"a header that cublasLt.h needs is missing: {built.stderr[:200]}")
    assert built.returncode == 0, built.stderr
    out = subprocess.run([tmp_path / "values"], capture_output=True, text=True, check=True).stdout
    got = dict(zip(VALUES, map(int, out.split()), strict=True))
    assert got == VALUES


def real() -> ctypes.CDLL:
    for name in [*cublaslt._found_path(), "libcublasLt.so.13", "libcublasLt.so.12"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    pytest.skip("there is no cuBLASLt (pip install nvidia-cublas)")


def test_the_library_itself_takes_descriptions_of_these_sizes() -> None:
    """Descriptions need no card: the library checks attributes and their sizes all the same."""
    shared = real()
    for name, arguments in cublaslt._FUNCTIONS.items():
        getattr(shared, name).argtypes = arguments  # every function is there
    description, layout, preference = (c_void_p() for _ in range(3))
    assert shared.cublasLtMatmulDescCreate(byref(description), 68, 0) == 0
    assert shared.cublasLtMatrixLayoutCreate(byref(layout), 0, 4, 6, 4) == 0
    assert shared.cublasLtMatmulPreferenceCreate(byref(preference)) == 0
    attributes = {
        cublaslt._TRANSA: c_int32(1),
        cublaslt._TRANSB: c_int32(1),
        cublaslt._EPILOGUE: c_int32(Epilogue.RELU_AUX_BIAS),
        cublaslt._BIAS_POINTER: c_void_p(4096),
        cublaslt._AUX_POINTER: c_void_p(8192),
        cublaslt._AUX_LD: c_int64(128),
    }
    for attribute, value in attributes.items():
        arguments = description, attribute, byref(value)
        set_it = shared.cublasLtMatmulDescSetAttribute
        assert set_it(*arguments, sizeof(value)) == 0, attribute
        assert set_it(*arguments, sizeof(value) + 1) != 0, "a size that is wrong is refused"
        back, written = type(value)(), c_size_t()
        shared.cublasLtMatmulDescGetAttribute(
            description, attribute, byref(back), c_size_t(sizeof(back)), byref(written)
        )
        assert (back.value, written.value) == (value.value, sizeof(value))
    preferences = {
        cublaslt._MAX_WORKSPACE: c_uint64(1 << 20),
        cublaslt._REDUCTION_MASK: c_uint32(2),
        **{which: c_uint32(16) for which in cublaslt._MIN_ALIGNMENTS},
    }
    for attribute, value in preferences.items():
        arguments = preference, attribute, byref(value)
        set_it = shared.cublasLtMatmulPreferenceSetAttribute
        assert set_it(*arguments, sizeof(value)) == 0, attribute
        assert set_it(*arguments, sizeof(value) + 1) != 0, "a size that is wrong is refused"
    assert shared.cublasLtMatmulPreferenceDestroy(preference) == 0
    assert shared.cublasLtMatrixLayoutDestroy(layout) == 0
    assert shared.cublasLtMatmulDescDestroy(description) == 0


def test_the_library_itself_starts_or_says_what_is_missing() -> None:
    real()
    try:
        version, problem = cublaslt.load().version, ""
    except BackendUnavailable as error:
        version, problem = 0, str(error)
    assert version >= 120000 or ("does not start" in problem and "nvidia-smi" in problem), problem
