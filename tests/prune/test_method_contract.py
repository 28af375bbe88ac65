from tests.contract.method_contract import MethodContract


class TestMethods(MethodContract):
    """Every method of ``prunus.prune``."""
