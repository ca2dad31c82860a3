"""The unittest case that the tests of moetune_parity derive from."""

import pathlib
import tempfile
import unittest

import adapter_files
import models


class ParityCase(unittest.TestCase):
    """Makes checkpoints and adapters on first use, in a folder that goes when the class is done."""

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def model(self, name):
        """Folder of the checkpoint models.SHAPES[name]."""
        folder = self.folder / name
        return folder if folder.exists() else models.write(name, folder)

    def adapter(self, name, targets, rank=4, alpha=6.0, **settings):
        """The `adapter` section of a CONFIG: random A and B on `targets` of that checkpoint."""
        folder = self.folder / f"adapter-{len(list(self.folder.iterdir()))}"
        return adapter_files.write(folder, self.model(name), targets, rank, alpha, seed=11, **settings)
