"""What is said of a package that is not installed."""

import pytest

from vitlab.core.errors import UserError
from vitlab.core.extras import need


def test_a_missing_package_is_answered_with_its_extra() -> None:
    need("json", extra="onnx", what="export.py")
    with pytest.raises(UserError, match=r"export.py needs no_such_module, which is not .* -e '\.\[onnx\]'$"):
        need("json", "no_such_module", extra="onnx", what="export.py")
    with pytest.raises(UserError, match="needs no_such_module and nor_this, which are not installed"):
        need("no_such_module", "nor_this", extra="onnx", what="export.py")
