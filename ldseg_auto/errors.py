"""The one exception for mistakes we foresee: it names the cause and the cure."""


class LDSegError(RuntimeError):
    """A foreseeable mistake.

    Args:
        cause: what is wrong, with the value that came.
        cure: what to do about it.
    """

    def __init__(self, cause: str, cure: str):
        self.cause = cause
        self.cure = cure
        super().__init__(f"{cause} {cure}")
