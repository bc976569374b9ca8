"""A Dovecot of the distribution that shows a Maildir by IMAP and POP3, on this machine alone.

Its binary without its service: everything it writes lies in a folder of its own, and every name
may log in with the one password. tests/dovecot.py adds TLS and tokens to the same configuration.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "correct-horse"  # noqa: S105  (it guards nothing)
BINARY = shutil.which("dovecot") or shutil.which("dovecot", path="/usr/sbin:/usr/local/sbin")


def account() -> tuple[str, str]:
    """The user and group under whom Dovecot reads mail: us, but never root."""
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    return user, grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


@contextmanager
def folder_for_dovecot() -> Iterator[Path]:
    """A short path, as its sockets need one, that its user may enter; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="pennypost-dovecot-"))
    try:
        folder.chmod(0o755)
        (folder / "mail").mkdir()
        shutil.chown(folder / "mail", *account())
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def inbox(folder: Path, user: str) -> Path:
    """The Maildir of a user, as a mail server delivers into it."""
    maildir = folder / "mail" / user
    for path in (maildir, *(maildir / name for name in ("cur", "new", "tmp"))):
        path.mkdir(exist_ok=True)
        shutil.chown(path, *account())
    return maildir


def configuration(folder: Path, imap: int, pop3: int, more: str = "") -> str:
    """dovecot.conf for these ports of 127.0.0.1; ``more`` comes before what every name may do."""
    user, group = account()
    return f"""
protocols = imap pop3
listen = 127.0.0.1
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
mail_location = maildir:{folder}/mail/%u
first_valid_uid = 1
first_valid_gid = 1
mail_uid = {user}
mail_gid = {group}
disable_plaintext_auth = no
maildir_very_dirty_syncs = no
ssl = no
{more}
passdb {{
  driver = static
  args = password={PASSWORD}
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={folder}/mail/%u
}}
# Wrong passwords are part of the tests, and must not make the next login wait.
auth_failure_delay = 0
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {imap}
  }}
}}
service pop3-login {{
  chroot =
  inet_listener pop3 {{
    port = {pop3}
  }}
}}
service stats {{
  chroot =
}}
"""
