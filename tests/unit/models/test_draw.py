"""Tests synthetic captioned pictures: equal seeds give equal pictures, near misses are wrong in just one way, and
held-out combinations stay out of training.
"""

from random import Random

import numpy as np
import pytest
from PIL import Image

from pairmill.pipeline.encode.tiny.draw import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    caption,
    random_scene,
    render,
    swapped_order,
    wrong_color,
    wrong_shape,
)

RED_ABOVE_BLUE = Scene("white", Thing("red", "star"), "above", Thing("blue", "square"))


def scenes(count: int, held_out: bool = False) -> list[Scene]:
    rng = Random(3)
    return [random_scene(rng, held_out) for _ in range(count)]


def words(scene: Scene) -> str:
    """The caption in a fixed wording, so that captions differ only if scenes differ."""
    return caption(scene, Random(0))


def words_but_articles(scene: Scene) -> list[str]:
    return [word for word in words(scene).split() if word not in ("a", "an")]


def looks(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.color, thing.shape) for thing in scene.things}


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


def test_equal_seeds_draw_equal_pictures_and_captions() -> None:
    for scene in scenes(5):
        assert render(scene, Random(5), 96).tobytes() == render(scene, Random(5), 96).tobytes()
        assert caption(scene, Random(5)) == caption(scene, Random(5))
    assert scenes(50) == scenes(50)


def test_different_seeds_vary_the_picture_of_a_scene() -> None:
    assert render(RED_ABOVE_BLUE, Random(1), 96).tobytes() != render(RED_ABOVE_BLUE, Random(2), 96).tobytes()


def test_drawing_leaves_the_global_generators_alone() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    render(RED_ABOVE_BLUE, Random(1), 64)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 640), (400, 300), (240, 330)])
def test_a_picture_has_the_requested_size(width: int, height: int) -> None:
    picture = render(RED_ABOVE_BLUE, Random(1), width, height)
    assert (picture.mode, picture.size) == ("RGB", (width, height))


def test_a_picture_looks_the_same_at_every_size() -> None:
    small = render(RED_ABOVE_BLUE, Random(1), 64)
    large = render(RED_ABOVE_BLUE, Random(1), 512).resize((64, 64), Image.Resampling.BICUBIC)
    assert mean_difference(small, large) < 6


def test_the_first_object_is_where_the_relation_puts_it() -> None:
    for relation, (dx, dy) in RELATIONS.items():
        scene = Scene("black", Thing("red", "circle"), relation, Thing("blue", "circle"))
        red = np.asarray(render(scene, Random(2), 96), np.float32)
        y, x = np.nonzero((red[..., 0] > 150) & (red[..., 2] < 100))
        assert np.sign(round((x.mean() - 47.5) / 20)) == dx
        assert np.sign(round((y.mean() - 47.5) / 20)) == dy


def test_a_center_crop_keeps_the_objects() -> None:
    wide = np.asarray(render(Scene("white", Thing("blue", "square", "large")), Random(2), 300, 100), np.float32)
    assert wide[:, :100].std() < 20 < wide[:, 100:200].std()


def test_all_combinations_of_color_and_shape_look_different() -> None:
    pictures = [render(Scene("gray", Thing(color, shape)), Random(4), 64) for color in COLORS for shape in SHAPES]
    closest = min(mean_difference(one, other) for i, one in enumerate(pictures) for other in pictures[:i])
    assert closest > 1


def test_captions_name_everything_in_the_picture() -> None:
    assert "a red star above a blue square on a white background" in words(RED_ABOVE_BLUE)
    single = Scene("black", Thing("orange", "circle"))
    assert "an orange circle on a black background" in words(single)
    assert "a small orange circle" in words(Scene("black", Thing("orange", "circle", "small")))
    assert len({caption(single, Random(seed)) for seed in range(50)}) >= 5


@pytest.mark.parametrize("held_out", [False, True])
def test_near_misses_change_just_one_word(held_out: bool) -> None:
    rng = Random(8)
    for scene in scenes(300, held_out):
        for near_miss in (wrong_color(scene, rng), wrong_shape(scene, rng)):
            pairs = zip(words_but_articles(scene), words_but_articles(near_miss), strict=True)
            assert sum(one != other for one, other in pairs) == 1
            assert near_miss.meaning != scene.meaning


def test_a_wrong_color_keeps_the_shapes_and_a_wrong_shape_keeps_the_colors() -> None:
    rng = Random(8)
    for scene in scenes(200):
        assert [t.shape for t in wrong_color(scene, rng).things] == [t.shape for t in scene.things]
        assert [t.color for t in wrong_shape(scene, rng).things] == [t.color for t in scene.things]


def test_a_swapped_order_has_the_same_words_and_a_different_meaning() -> None:
    for scene in scenes(200):
        if scene.second is None:
            with pytest.raises(ValueError, match="one thing"):
                swapped_order(scene, Random(0))
        else:
            swapped = swapped_order(scene, Random(0))
            assert sorted(words_but_articles(swapped)) == sorted(words_but_articles(scene))
            assert words_but_articles(swapped) != words_but_articles(scene)
            assert swapped.meaning != scene.meaning


def test_converse_relations_have_the_same_meaning() -> None:
    converse = Scene("white", Thing("blue", "square"), "below", Thing("red", "star"))
    assert converse != RED_ABOVE_BLUE
    assert converse.meaning == RED_ABOVE_BLUE.meaning
    assert render(converse, Random(1), 64).size == (64, 64)


def test_training_scenes_and_their_near_misses_never_show_held_out_combinations() -> None:
    rng = Random(8)
    for scene in scenes(1000):
        assert not scene.held_out
        assert not looks(wrong_color(scene, rng)) & HELD_OUT
        assert not looks(wrong_shape(scene, rng)) & HELD_OUT


def test_held_out_scenes_always_show_a_held_out_combination() -> None:
    assert all(looks(scene) & HELD_OUT for scene in scenes(300, held_out=True))


def test_training_scenes_cover_every_word() -> None:
    drawn = scenes(1000)
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)
    assert {thing.color for scene in drawn for thing in scene.things} == set(COLORS)
    assert {thing.shape for scene in drawn for thing in scene.things} == set(SHAPES)
    assert {scene.relation for scene in drawn} == {*RELATIONS, None}
    assert {scene.second is None for scene in drawn} == {True, False}
    assert all(len(looks(scene)) == len(scene.things) for scene in drawn)
