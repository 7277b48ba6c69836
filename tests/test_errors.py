import pickle

import pytest

from wkv.errors import CheckpointError, CorpusError, UnsafeFileError


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("a/b.pth", "ends at byte 7"),
        UnsafeFileError("a/b.pth", "asks for os.system", tensor="head.weight"),
        CorpusError("c.idx", "is empty"),
    ],
)
def test_errors_about_files_cross_from_one_process_to_another(error):
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)
