"""What helps the tests of this folder says itself what was expected, as tests do."""

import pytest

pytest.register_assert_rewrite("desk")
