"""The subjects of commits fit in 72 characters, since the commit that introduced this rule."""
import subprocess

SINCE = "b195f033958e550570e635e44f916f1850e3d080"
CHARACTERS_MAX = 72


def git(root, *words):
    """What git prints, or None: there is no git, no repository, or no such commit."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def check_subjects(root, since=SINCE):
    """A clone without `since` has what came later, if it is shallow, or another history, of which nothing is known."""
    known = git(root, "rev-parse", "--verify", "--quiet", since + "^{commit}")
    if not known and (git(root, "rev-parse", "--is-shallow-repository") or "").strip() != "true":
        return
    commits = git(root, "log", "--no-merges", "--format=%h %s", f"{since}..HEAD" if known else "HEAD")
    for line in (commits or "").splitlines():
        name, _, subject = line.partition(" ")
        if len(subject) > CHARACTERS_MAX:
            yield f"commit {name}: the subject has {len(subject)} characters, the limit is {CHARACTERS_MAX}: {subject}"
