"""A model that cannot be loaded."""


class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("the weights are missing")
