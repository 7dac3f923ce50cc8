"""The errors that end a stage: each carries its row of the exit code table and a sentence for the user."""

from __future__ import annotations

from finetune_contract.exit_codes import BY_CODE, ExitCode, Failure


class TrainerError(Exception):
    """A known way to fail. The message names the field or line, what is wrong, and what to do."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def failure(self) -> Failure:
        """The row of the table."""
        return BY_CODE[self.code]


class NotFoundError(Exception):
    """Nothing lies at a URI. The caller knows what that means: a missing data set, model or checkpoint."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"nothing at {uri}")
        self.uri = uri


class AlreadyExistsError(Exception):
    """A conditional write found something there."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri} exists already")
        self.uri = uri
