"""How a command says that it cannot go on."""


class CommandFailed(Exception):
    """The message is for whoever typed the command: what is wrong, and what to do next."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
