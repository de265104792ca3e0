import subprocess
import sys

import numpy as np
import pytest
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from tests.wire.reference import without_ml_dtypes
from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import DATATYPES
from tritonasync.wire.dtypes import datatype_of, item_size, numpy_dtype

SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_datatype_is_found_again_from_its_numpy_dtype(datatype):
    pytest.importorskip("ml_dtypes")
    assert datatype_of(numpy_dtype(datatype)) == datatype


@pytest.mark.parametrize("datatype", DATATYPES)
def test_item_size_is_the_width_on_the_wire(datatype):
    assert item_size(datatype) == SIZES[datatype]


@pytest.mark.parametrize("datatype", sorted({*DATATYPES} - {"BYTES", "BF16"}))
def test_fixed_size_dtypes_agree_with_tritonclient(datatype):
    assert numpy_dtype(datatype) == triton_to_np_dtype(datatype)
    assert np_to_triton_dtype(numpy_dtype(datatype)) == datatype


@pytest.mark.parametrize("datatype", sorted({*DATATYPES} - {"BYTES", "BF16"}))
def test_dtypes_are_little_endian_and_numpys_own_objects(datatype):
    dtype = numpy_dtype(datatype)
    assert dtype.newbyteorder("<") == dtype
    if sys.byteorder == "little":
        assert np.zeros(1, dtype.char).dtype is dtype


@pytest.mark.parametrize("name", [">i4", ">f2", ">u8", "<i4"])
def test_byte_order_does_not_change_the_datatype(name):
    assert datatype_of(np.dtype(name)) == datatype_of(np.dtype(name[1:]))


@pytest.mark.parametrize(("name", "datatype"), [("intc", "INT32"), ("longlong", "INT64")])
def test_numpys_other_names_of_a_width_are_the_same_datatype(name, datatype):
    assert datatype_of(np.dtype(name)) == datatype


@pytest.mark.parametrize("dtype", ["O", "S", "S7", "U", "U7"])
def test_objects_and_fixed_width_strings_are_bytes(dtype):
    assert datatype_of(np.dtype(dtype)) == "BYTES"


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="numpy 2's StringDType")
def test_variable_width_strings_are_bytes():
    assert datatype_of(np.dtypes.StringDType()) == "BYTES"


@pytest.mark.parametrize(
    "dtype", ["c8", "c16", "M8[s]", "m8[s]", "V2", [("a", "f4"), ("b", "i4")], "longdouble"]
)
def test_a_dtype_that_triton_lacks_is_refused_by_name(dtype):
    dtype = np.dtype(dtype)
    with pytest.raises(InvalidInputError, match="no datatype for numpy's") as caught:
        datatype_of(dtype)
    assert str(dtype) in str(caught.value)


@pytest.mark.parametrize("datatype", ["FP8", "", "fp32", "STRING"])
def test_an_unknown_datatype_is_refused(datatype):
    with pytest.raises(InvalidInputError, match="is not a Triton datatype"):
        numpy_dtype(datatype)
    with pytest.raises(InvalidInputError, match="is not a Triton datatype"):
        item_size(datatype)


def test_bf16_is_ml_dtypes_bfloat16_where_it_is_installed():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert numpy_dtype("BF16") == ml_dtypes.bfloat16
    assert datatype_of(np.dtype(ml_dtypes.bfloat16)) == "BF16"


def test_bf16_is_raw_uint16_where_ml_dtypes_is_missing():
    with without_ml_dtypes():
        assert numpy_dtype("BF16") == np.dtype("<u2")
        assert item_size("BF16") == 2
        assert datatype_of(np.dtype("<u2")) == "UINT16"


def test_other_small_floats_of_ml_dtypes_are_refused():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(InvalidInputError, match="float8_e4m3fn"):
        datatype_of(np.dtype(ml_dtypes.float8_e4m3fn))


def test_the_module_itself_does_not_import_ml_dtypes():
    code = "import sys, tritonasync.wire.dtypes; raise SystemExit('ml_dtypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
