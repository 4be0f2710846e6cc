"""Checkpoints: Orbax, with checksums of our own.

Orbax restores flipped bytes as wrong numbers without an error, so the digest of every array is
saved beside the arrays and compared after reading.
"""

import hashlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from functa.runtime import mesh, processes, storage
from functa.runtime.errors import DamagedFileError, UserError

# Of the machine and not of the file: reading again may go well, so nothing is taken for damaged.
_PASSING = (MemoryError, OSError)
# Raised when the same arrays come to mean something else, as when the first layer went to radians
# (read as what they were, they would decode to other images without an error), or when there are
# others, as when Muon's state changed. One number for states and exported fields.
_FORMAT = 4
_RECORD_BYTES = 1 << 16  # of digests and Orbax's own files


def array_digests(tree: Any) -> dict[str, str]:
    """{path of a leaf: "dtype[shape]:sha256 of its bytes"}; all processes must call it where arrays lie
    spread over them."""
    digests = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # One at a time: a host need not hold all of a state that many share.
        value = np.ascontiguousarray(mesh.to_host(leaf))
        content = hashlib.sha256(value.tobytes()).hexdigest()
        digests[jax.tree_util.keystr(path)] = f"{value.dtype}{list(value.shape)}:{content}"
    return digests


def digest(tree: Any) -> str:
    """One name for the exact values of a pytree: "sha256:..."."""
    lines = sorted(f"{path} {content}" for path, content in array_digests(tree).items())
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, but it leaves the question whether to stop to functa.interruption.

    To ask is to tell the runtime how far this process has come. Orbax asks from a thread that ends a save in the
    background, with the step saved: processes then agree on a step that one of them has passed, and hang.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The latest `keep` checkpoints of one directory.

    A checkpoint is a pytree of arrays and a dict `info` of JSON values. Saving goes on in the
    background; a save that was killed leaves nothing that is ever read.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, read_only: bool = False):
        """read_only: for who does not hold the run's lock; saves of others under way are let be."""
        self.directory = epath.Path(directory)
        if not storage.is_remote(directory):
            self.directory = self.directory.resolve()  # Orbax takes no relative paths
        self._bytes = 0  # of the newest save
        self._read_only = read_only
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                step_prefix="step",
            ),
            item_names=("state", "info"),
        )

    def steps(self) -> list[int]:
        """Steps that were saved completely, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Saves in the background.

        Raises:
          ValueError: a checkpoint of this step or a later one is there; see `remove_after`.
          OSError: of this save or the one before it: the disk is full; names the bytes needed.
        """
        record = {"format": _FORMAT, "digests": array_digests(state), "info": info}
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _RECORD_BYTES
        with storage.explain_disk_full(self.directory, self._bytes):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(record)
                ),
            )
        if not saved:
            raise ValueError(
                f"{self.directory} holds steps {self.steps()}: step {step} cannot be saved"
            )

    def info(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays.

        Raises:
          DamagedFileError: it cannot be read.
        """
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(info=ocp.args.JsonRestore())
            )
            return restored["info"]["info"]
        except Exception as error:  # as in `restore`
            if isinstance(error, _PASSING) and not isinstance(error, FileNotFoundError):
                raise
            raise DamagedFileError(
                f"{self.directory / f'step_{step}'} is damaged ({_first_line(error)}); delete the folder "
                "of the stage to train it again"
            ) from error

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        for later in [other for other in self.steps() if other > step]:
            self._manager.delete(later)

    def restore(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint whose arrays are what was saved; damaged newer ones are removed.

        Args:
          template: pytree of jax.ShapeDtypeStruct with the shardings wanted.
        Returns:
          (step, arrays, info), or None if nothing was ever saved.
        Raises:
          DamagedFileError: every checkpoint is damaged; the message says how each is.
          UserError: it is of a version whose arrays mean something else; nothing is removed.
        """
        damage = []
        for step in reversed(self.steps()):
            path = self.directory / f"step_{step}"
            restored, problem = self._read(step, template)
            # What one process cannot read, none may go on from.
            problem = next(filter(None, processes.gather_texts(problem, str(path))), "")
            if not problem:
                self._refuse_other_format(path, restored["info"].get("format", 1))
                if not self._read_only:
                    self.remove_after(step)
                return step, restored["state"], restored["info"]["info"]
            damage.append(f"{path}: {problem}")
            logging.warning("damaged checkpoint, trying the one before: %s", damage[-1])
        if damage:
            raise DamagedFileError(
                "no undamaged checkpoint is left; delete the folder of the stage to train it again:\n  "
                + "\n  ".join(damage)
            )
        return None

    def _read(self, step: int, template: Any) -> tuple[Any, str]:
        """(what was saved, ""), or (None, what is wrong with it)."""
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(template), info=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax raises a dozen types for a damaged file
            if isinstance(error, _PASSING) and not isinstance(error, FileNotFoundError):
                raise
            return None, _first_line(error)
        saved = restored["info"]["digests"]
        digests = array_digests(restored["state"])
        wrong = [name for name, content in digests.items() if saved.get(name) != content]
        if wrong:
            return None, f"checksum of {wrong[0]} and {len(wrong) - 1} more arrays"
        return restored, ""

    def _refuse_other_format(self, path: epath.Path, found: int) -> None:
        if found != _FORMAT:
            raise UserError(
                f"{path} has format {found}, this program reads {_FORMAT}: another version of functa wrote "
                "it, whose arrays are others or mean something else; use that version, or train again in "
                "another directory"
            )

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          OSError: the disk is full; names the bytes needed.
        """
        with storage.explain_disk_full(self.directory, self._bytes):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with storage.explain_disk_full(self.directory, self._bytes):
            self._manager.close()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
