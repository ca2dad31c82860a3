"""Pictures of meshes: words have room on every mesh, groups are those of docs/parallelism.md, bytes and fetches those
of its formulas."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml
from pathlib import Path

from synthetic import in_stages, plan
from synthetic_mesh import facts, in_two_groups, planned

from draw.errors import UserError
from draw.layer_picture import layer_picture
from draw.mesh_picture import mesh_picture
from draw.picture import COLOURS, FETCH, WIDTH, Picture, text_width
from draw.plan_file import read_plans
from draw.planned_mesh import PlannedMesh
from draw.stages_picture import stages_picture
from draw.weights_picture import weights_picture

DRAW = Path(__file__).resolve().parents[2] / "scripts" / "draw"
SVG = "{http://www.w3.org/2000/svg}"
PICTURES = (mesh_picture, layer_picture, weights_picture)

# dp, ep, tp, expert_tp and, where there are several stages, pp
MESHES = (
    (1, 1, 1, 1),
    (1, 16, 1, 1),
    (1, 2, 8, 1),
    (3, 1, 1, 1),
    (16, 8, 1, 1),
    (1, 1, 2, 1),
    (2, 2, 2, 1),
    (2, 2, 2, 2),
    (1, 2, 8, 8),
    (2, 16, 2, 1, 4),
    (1, 8, 1, 1, 16),
)


def texts(svg):
    return [text.text for text in xml.fromstring(svg).iter(f"{SVG}text")]


def places(svg):
    """Of each text (words, left, right, top, bottom)."""
    for text in xml.fromstring(svg).iter(f"{SVG}text"):
        size, x, y = float(text.get("font-size", 12)), float(text.get("x")), float(text.get("y"))
        width = text_width(text.text, size, text.get("font-weight") == "bold")
        left = x - {None: 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
        yield text.text, left, left + width, y - size * 0.72, y


def without_room(svg):
    """Words that end outside the picture or lie on others."""
    drawn = list(places(svg))
    found = [f"'{words}' ends outside" for words, left, right, *_ in drawn if left < 0 or right > WIDTH]
    for a, b in itertools.combinations(drawn, 2):
        if a[1] < b[2] and b[1] < a[2] and a[3] < b[4] and b[3] < a[4]:
            found.append(f"'{a[0]}' lies on '{b[0]}'")
    return found


class WordsTest(unittest.TestCase):
    def test_are_taken_to_be_as_wide_as_helvetica_has_them_or_wider(self):
        # Adobe's metrics, thousandths of an em: H 722 e 556 l 222 v 500 t 278 i 222 c 500 a 556; G 778 B 667 M 833 m
        # 833 w 722 0-9 556.
        self.assertTrue(4112 <= text_width("Helvetica", 1000) < 1.25 * 4112)
        self.assertGreaterEqual(text_width("GBMmw0123456789", 1000), 778 + 667 + 833 + 833 + 722 + 5560)

    def test_marks_of_xml_are_escaped(self):
        picture = Picture("a & b")
        picture.text(20, 20, 'T < U & "x" > 0\x1b')
        drawn = picture.finish()
        self.assertIn("<title>a &amp; b</title>", drawn)
        self.assertEqual(texts(drawn), ['T < U & "x" > 0\\x1b'])
        mesh = planned()
        mesh.model.type = 'a <model> & "more"'
        self.assertIn(
            f"{mesh.model.type}, 671B parameters: 61 layers, 256 experts, 128 heads", texts(mesh_picture(mesh))
        )

    def test_have_room_on_any_mesh(self):
        for (dp, ep, tp, expert_tp, *pp), shard, offload in itertools.product(
            MESHES, ("none", "all", "node"), ("none", "all", "half")
        ):
            mesh = planned(
                dp=dp,
                ep=ep,
                tp=tp,
                expert_tp=expert_tp,
                shard=shard,
                offload=offload,
                ranks_per_host=8,
                pp=sum(pp) or 1,
            )
            for picture in PICTURES:
                with self.subTest(mesh.name, shard=shard, offload=offload, picture=picture.__name__):
                    self.assertEqual(without_room(picture(mesh)), [])


class MeshTest(unittest.TestCase):
    def test_stages_are_named(self):
        drawn = texts(mesh_picture(planned(dp=1, ep=2, tp=1, pp=4)))
        self.assertEqual([drawn.count(f"stage {stage}") for stage in range(5)], [2, 2, 2, 2, 0])
        self.assertIn("4 stages of 15 to 16 layers, all of 0 to 9 kept, attention of 5 to 14", drawn)

    def test_ranks_of_a_group_have_one_colour_of_two_groups_two(self):
        # rank = (dp * 2 + ep) * 2 + tp; the groups by hand, in the order of the picture: ep, tp, expert_replicas, data.
        expected = ("01012323", "00112233", "00110011", "01010101")
        fill, fills = None, []  # of the boxes whose words are a number
        for element in xml.fromstring(mesh_picture(planned())):
            if element.tag == f"{SVG}rect":
                fill = element.get("fill")
            elif element.text in list("01234567"):
                fills.append(fill)
        self.assertEqual(len(fills), 32)
        for kind, groups in enumerate(expected):
            drawn = fills[8 * kind : 8 * kind + 8]
            self.assertEqual(drawn, [COLOURS[int(group)] for group in groups])

    def test_more_groups_than_colours(self):
        said = f"There are more groups than colours: each comes back after {len(COLOURS)}."
        self.assertIn(said, texts(mesh_picture(planned(dp=9, ep=2, tp=1))))
        self.assertNotIn(said, texts(mesh_picture(planned(dp=9, ep=1, tp=1))))

    def test_what_a_rank_holds(self):
        said = texts(mesh_picture(planned(dp=2, ep=2, tp=2)))
        # Rank 7 is at dp 1, ep 1, tp 1: the last of the four that share each.
        for words in ("rank 7", "dp 1  ep 1  tp 1", "experts 128-255", "their slabs: shard 4 of 4", "heads 64-127"):
            self.assertIn(words, said)
        self.assertEqual(said.count("dense slabs: shard 4 of 4"), 2)  # and rank 6, which differs along tp alone
        self.assertIn("F 1024-2047: shard 2 of 2", texts(mesh_picture(planned(expert_tp=2))))
        self.assertIn("their slabs: whole", texts(mesh_picture(planned(shard="none"))))

    def test_ranks_beyond_what_a_picture_has_room_for(self):
        said = texts(mesh_picture(planned(dp=16, ep=8, tp=1, ranks_per_host=8)))
        self.assertIn("... and 64 ranks more", said)
        self.assertIn("rank 63", said)
        self.assertNotIn("rank 64", said)


class LayerTest(unittest.TestCase):
    def test_bytes_are_those_of_the_formulas(self):
        # T = 32 sequences of 4096 tokens on 4 places, halved by TP; C = 1536 + 512 + 64, D = 7168, K = 8, 2 bytes a
        # number.
        said = texts(layer_picture(planned()))
        self.assertIn("(TP-1) T C b = 66.0 MiB", said)  # 16384 * 2112 * 2 = 69,206,016
        self.assertIn("(TP-1) T D b = 224 MiB", said)  # 16384 * 7168 * 2 = 234,881,024
        self.assertIn("(TP-1) T 3 D b = 672 MiB", said)
        self.assertIn("at most 448 MiB", said)  # 16384 * (2 * 14336 + 8 * 4) = 470,286,336, to the one other rank
        # 3/4 of 128 experts of 3 * 7168 * 2048 numbers, 0.5 + 4/64 bytes each
        self.assertIn("experts gathered: 2.21 GiB", said)

    def test_experts_in_parts(self):
        said = texts(layer_picture(planned(expert_tp=2)))
        self.assertIn("224 MiB", said)  # z, weights, numbers of experts: 16384 * (7168 * 2 + 8 * 4) = 235,405,312
        # z, d y, ... of the rows of both ranks: 32768 * (2 * 14336 + 8 * 4) = 940,572,672
        self.assertIn("at most 897 MiB", said)

    def test_a_rank_alone_sends_nothing(self):
        said = texts(layer_picture(planned(dp=1, ep=1, tp=1, shard="none", offload="none")))
        for words in ("on this rank alone", "on the device: nothing moves", "AdamW's new values"):
            self.assertIn(words, said)
        self.assertFalse([words for words in said if "gathered" in words or "all-to-all" in words])


class WeightsTest(unittest.TestCase):
    @staticmethod
    def fetches(svg):
        return sum(box.get("fill") == FETCH for box in xml.fromstring(svg).iter(f"{SVG}rect"))

    def test_a_step_fetches_all_slabs_but_two_twice(self):
        self.assertEqual(self.fetches(weights_picture(planned())), 2 * (6 - 2) + 1)  # one box more is the legend's
        self.assertEqual(self.fetches(weights_picture(planned(shard="none", offload="none"))), 0)

    def test_slabs_that_stay_in_their_buffers(self):
        mesh = planned()
        mesh.fetches.slabs = 2
        said = texts(weights_picture(mesh))
        self.assertIn("Only 2 slabs are fetched, and stay in their buffers: once, for all steps.", said)

    def test_ranks_that_share_a_slab(self):
        def ranks(**mesh):
            return [words for words in texts(weights_picture(planned(**mesh))) if words.startswith("rank ")]

        self.assertEqual(ranks(), ["rank 0", "rank 1", "rank 4", "rank 5"])
        self.assertEqual(ranks(shard="node"), ["rank 0", "rank 1"])
        # Those at the other place of the tensor axis hold other features.
        self.assertEqual(ranks(expert_tp=2), ["rank 0", "rank 4"])
        self.assertIn("... and 12 ranks more", texts(weights_picture(planned(dp=16, ep=8, tp=1))))

    def test_a_stage_and_its_groups(self):
        drawn = weights_picture(in_two_groups(planned(dp=1, ep=2, tp=2, pp=2)))
        self.assertEqual(without_room(drawn), [])
        said = texts(drawn)
        self.assertIn("Experts of stage 1's 30 layers, 29 of them in host memory; each slab in 2 shards", said)
        self.assertIn("rank 4", said)  # the first of the second stage's four
        self.assertEqual(said.count("turn"), 2)
        self.assertIn("2, gr. 1", said)
        self.assertTrue(any("This recipe has 30 in 32 groups: 1,792 fetches." in words for words in said), said)

    def test_nothing_is_frozen(self):
        mesh = planned()
        mesh.weights.experts.slab_bytes = 0
        with self.assertRaisesRegex(UserError, "adapter: none"):
            weights_picture(mesh)


class StagesTest(unittest.TestCase):
    def plan(self, **stages):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plan.json"
            path.write_text(json.dumps(in_stages(plan(), **stages)))
            return read_plans(path)[0]

    def test_have_room(self):
        for stages, groups in ((2, 1), (2, 16), (4, 8), (8, 32), (16, 64), (40, 48)):
            with self.subTest(stages=stages, groups=groups):
                self.assertEqual(without_room(stages_picture(self.plan(stages=stages, groups=groups))), [])

    def test_groups_go_one_down_one_up(self):
        """The table of docs/parallelism.md: stage 0 d0 d1 u0 d2 u1, stage 1 d0 u0 d1 u1 d2 u2."""
        drawn = stages_picture(self.plan(stages=2, groups=12))
        rows = {}
        for words, left, _, _, y in places(drawn):
            if words.isdigit():
                rows.setdefault(y, []).append((left, words))
        rows = [[words for _, words in sorted(row)] for _, row in sorted(rows.items())]
        self.assertEqual(rows, [["0", "1", "0", "2", "1"], ["0", "0", "1", "1", "2", "2"]])

    def test_idle_and_bubble(self):
        # Stages alike: (P - 1) / (G + P - 1) of the time each.
        said = texts(stages_picture(self.plan(stages=4, groups=12)))
        self.assertIn("The bubble: 20 % of the time, (P - 1) / (G + P - 1) of 4 stages and 12 groups", said)
        self.assertEqual(said.count("20 %"), 4)

    def test_one_stage(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plan.json"
            path.write_text(json.dumps(plan()))
            with self.assertRaisesRegex(UserError, "one stage"):
                stages_picture(read_plans(path)[0])


class CallTest(unittest.TestCase):
    def call(self, *arguments):
        return subprocess.run([sys.executable, str(DRAW), *arguments], capture_output=True)

    def test_by_name(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "mesh.json")
            Path(path).write_text(json.dumps(facts()))
            for picture in PICTURES:
                ended = self.call(picture.__name__.removesuffix("_picture"), path)
                self.assertEqual((ended.returncode, ended.stderr), (0, b""))
                self.assertEqual(ended.stdout.decode(), picture(PlannedMesh(json.dumps(facts()))))

    def test_without_a_file(self):
        ended = self.call("mesh")
        self.assertEqual(ended.returncode, 2)
        self.assertIn(b"one file", ended.stderr)


if __name__ == "__main__":
    unittest.main()
