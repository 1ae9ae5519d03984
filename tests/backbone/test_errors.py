"""Which errors of the backbone become those of the user, and what they say."""

import errno
from urllib.error import HTTPError

import pytest

from vheatir.backbone.errors import UserError, as_user_error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("train.lr must be above 0"), "train.lr must be above 0"),
        (FileNotFoundError("no checkpoint a.pth"), "no checkpoint a.pth"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.pth"), "a.pth: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "a.pth"), "a.pth: Permission denied"),
        (HTTPError("https://host/a.pth", 404, "Not Found", {}, None), "https://host/a.pth: HTTP Error 404: Not Found"),
    ],
)
def test_what_the_user_gave_is_named(error, said):
    with pytest.raises(UserError) as raised, as_user_error("recipe.yml"):
        raise error
    assert str(raised.value) == f"recipe.yml: {said}"


def test_errors_of_streams_and_of_the_system_stay_what_they_are():
    with pytest.raises(BrokenPipeError), as_user_error("recipe.yml"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
