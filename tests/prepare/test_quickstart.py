"""The quickstart's data from WordNet, and its report against transformers' own loss and generation."""

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

import support  # noqa: F401  (puts scripts/ on the path)
import quickstart_data

WORDNET = Path("/usr/share/wordnet/data.noun")
SYNSETS = """  1 the licence, which starts with blanks
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04424418 n 0000 | that which is perceived
02084071 05 n 03 domestic_dog 0 dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis; "the dog barked all night"; "a | b"
"""


class Data(unittest.TestCase):
    def test_reading(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.noun"
            path.write_text(SYNSETS)
            nouns = quickstart_data.read_nouns(path)
        self.assertEqual(
            nouns,
            [
                ("entity", "top", "that which is perceived"),
                ("domestic dog", "animal", 'a member of the genus Canis; "the dog barked all night"; "a | b"'),
            ],
        )
        self.assertEqual(
            quickstart_data.conversation(*nouns[1]),
            {
                "messages": [
                    {"role": "user", "content": "What kind of thing is domestic dog: a member of the genus Canis?"},
                    {"role": "assistant", "content": "animal"},
                ]
            },
        )
        self.assertEqual(len(quickstart_data.definition("word " * 50).split()), 24)

    @unittest.skipUnless(WORDNET.is_file(), "needs Debian's wordnet-base")
    def test_whole_database(self):
        nouns = quickstart_data.read_nouns(WORDNET)
        self.assertEqual(len(nouns), 82_115)
        self.assertEqual(len({n[1] for n in nouns}), 26)
        self.assertEqual(sum(n[1] == "artifact" for n in nouns), 11_587)  # as WordNet's lexicographer files count
        training, held = quickstart_data.split(nouns)
        self.assertEqual((len(training), len(held)), (81_115, 1_000))
        self.assertEqual(sorted(training + held), sorted(nouns))
        self.assertFalse({n[0].lower() for n in training} & {n[0].lower() for n in held})
        self.assertFalse(
            {quickstart_data.definition(n[2]) for n in training} & {quickstart_data.definition(n[2]) for n in held}
        )
        self.assertEqual(quickstart_data.split(nouns), (training, held))


class Report(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import quickstart_report
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.set_num_threads(1)
        cls.report, cls.torch = quickstart_report, torch
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = Path(cls.folder.name)
        nouns = [
            (f"noun {w}", k, f"{w} is a thing of kind {k}")
            for w in ("red", "green", "blue", "black")
            for k in quickstart_data.CLASSES.values()
        ]
        quickstart_data.write_base(cls.root / "base", [t["text"] for n in nouns for t in [quickstart_data.text(*n)]])
        torch.manual_seed(1)
        cls.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(cls.root / "base")).eval()
        for p in cls.model.parameters():
            if p.dim() > 1:
                torch.nn.init.normal_(p, std=0.3)  # sharp enough for greedy choices that rounding does not turn
        cls.model.save_pretrained(cls.root / "base")
        cls.heldout = support.write_lines(cls.root / "heldout.jsonl", [quickstart_data.conversation(*n) for n in nouns])
        cls.tokenizer = quickstart_report.load_tokenizer(cls.root / "base")
        cls.questions = quickstart_report.read_questions(cls.heldout, cls.tokenizer)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_loss_is_that_of_transformers(self):
        torch = self.torch
        total = count = 0
        with torch.no_grad():
            for _, _, tokens, prompt in self.questions:
                labels = torch.tensor([[-100] * prompt + tokens[prompt:]])
                kept = len(tokens) - prompt
                total += self.model(input_ids=torch.tensor([tokens]), labels=labels).loss.item() * kept
                count += kept
        loss, exact = self.report.evaluate(self.model, self.questions)
        self.assertAlmostEqual(loss, total / count, places=4)
        self.assertEqual(exact, 0.0)

    def test_exact_answers_are_those_of_generation(self):
        torch = self.torch
        rows = []
        for question, _, tokens, prompt in self.questions[:6]:
            greedy = self.model.generate(
                input_ids=torch.tensor([tokens[:prompt]]), do_sample=False, max_new_tokens=5, eos_token_id=None
            )[0].tolist()
            rows.append((question, "", greedy, prompt))
        self.assertEqual(self.report.evaluate(self.model, rows)[1], 1.0)
        rows[0][2][-1] = (rows[0][2][-1] + 1) % 4096
        self.assertAlmostEqual(self.report.evaluate(self.model, rows)[1], 5 / 6)

    def test_whole_report(self):
        import warnings
        from peft import LoraConfig, PeftModel, get_peft_model
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM

        torch = self.torch
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(self.root / "base"),
            LoraConfig(r=4, target_modules=["q_a_proj", "o_proj"], init_lora_weights=False),
        )
        model.save_pretrained(self.root / "adapter")
        ids = torch.arange(4, 40)
        with torch.no_grad():
            logits = model.eval()(input_ids=ids[None]).logits[0].float().contiguous()
        save_file({"input_ids": ids, "logits": logits}, self.root / "same.safetensors")
        wrong = logits.clone()
        wrong[3, 7] += 0.01 * logits.abs().max()
        save_file({"input_ids": ids, "logits": wrong}, self.root / "wrong.safetensors")
        for file, code, words in (("same", 0, ", equal"), ("wrong", 1, "1.00e-02, NOT equal")):
            out = io.StringIO()
            arguments = [
                "report",
                str(self.root / "base"),
                str(self.root / "adapter"),
                str(self.heldout),
                "--logits",
                str(self.root / f"{file}.safetensors"),
                "--examples",
                "1",
            ]
            before, sys.argv = sys.argv, arguments
            try:
                with contextlib.redirect_stdout(out), warnings.catch_warnings():
                    self.assertEqual(self.report.main(), code)
            finally:
                sys.argv = before
            self.assertIn(words, out.getvalue())
            self.assertIn("104 held-out questions", out.getvalue())
            self.assertIn('always saying "top" would be right in 3.8%', out.getvalue())


if __name__ == "__main__":
    unittest.main()
