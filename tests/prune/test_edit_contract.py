"""Methods that replace, drop or zero keep their contract."""

from tests.contract.edit_contract import EditContract


class TestEdits(EditContract):
    """The suite, for all of them."""
