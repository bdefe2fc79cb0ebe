import contextlib

import pytest


@pytest.fixture
def refuses():
    """Checks that a block raises an error of this class with exactly this text."""

    @contextlib.contextmanager
    def check(error, text):
        with pytest.raises(error) as caught:
            yield
        assert str(caught.value) == text

    return check
