"""Canvases, and samples of toy models whose laws are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import mdm_jax as mdm
from mdm_jax.data import ByteTokenizer
from mdm_jax.evaluation.canvas import Canvas, canvas
from mdm_jax.evaluation.samples import TextModel, readable, sample_text, samplers_for

BYTES = ByteTokenizer()
MASKED = mdm.Masked(256, mdm.LogLinear())
UNIFORM = mdm.Uniform(256, mdm.LogLinear())
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles several times faster than the default


def text(tokens):
    return BYTES.decode(tokens)


def alphabet(tokens, t):
    """Position i is the i-th letter, whatever stands elsewhere."""
    letters = 97 + jnp.arange(tokens.shape[-1])
    return 60.0 * jax.nn.one_hot(jnp.broadcast_to(letters, tokens.shape), 257)


def successor(tokens, t):
    """A next-token model: one more than this token. It embeds 256 ids and breaks on others."""
    logits = 60.0 * jax.nn.one_hot((tokens + 1) % 256, 256)
    return jnp.where((tokens < 256)[..., None], logits, jnp.nan)


def two_letters(tokens, t):
    """a with probability 0.8, b with 0.2, independently; the mask is likelier, but never drawn."""
    logits = jnp.full((257,), -jnp.inf).at[97].set(jnp.log(0.8)).at[98].set(jnp.log(0.2))
    return jnp.broadcast_to(logits.at[256].set(5.0), (*tokens.shape, 257))


def model(f, process=MASKED):
    return TextModel(Partial(f), process, BYTES)


class TestCanvas:
    def test_template_is_text_with_gaps(self):
        c = canvas(BYTES, template="f(___) = {{2}}!")
        assert "".join(chr(i) if k else "_" for i, k in zip(*c, strict=True)) == "f(___) = __!"
        assert c.open == 5 and c.tokens.dtype == np.int32

    def test_two_underscores_and_prompts_are_text(self):
        c = canvas(BYTES, prompt="____", template="__init__ {x} {{y}} ___")
        assert text(c.tokens[c.keep]) == "______init__ {x} {{y}} "
        assert c.open == 3 and not c.keep[-3:].any()

    def test_length_opens_the_rest(self):
        c = canvas(BYTES, prompt="ab", template="c___", length=9)
        assert c.keep.tolist() == [True] * 3 + [False] * 6

    def test_widths_are_tokens_and_text_is_utf8(self):
        assert canvas(BYTES, prompt="é", length=3).open == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"prompt": "abcdef", "length": 5}, "prompt is 6 tokens long.*canvas of 5"),
            ({"template": "ab___", "length": 4}, "template is 5 tokens long"),
            ({"prompt": "abc"}, "nothing to fill in"),
            ({"prompt": "abc", "length": 3}, "nothing to fill in"),
            ({"template": "{{0}}a"}, "nothing to fill in"),
            ({}, "nothing to fill in"),
            ({"length": -1}, "length=-1"),
        ],
    )
    def test_errors_say_what_to_do(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            canvas(BYTES, **arguments)


class TestMasked:
    @pytest.mark.parametrize("sampler", samplers_for(MASKED))
    def test_every_sampler_fills_the_gaps_and_keeps_the_rest(self, sampler):
        gaps = canvas(BYTES, template="X___efgh{{4}}Y")
        samples = sample_text(KEY, model(alphabet), gaps, sampler=sampler, batch=2)
        assert samples.texts == ("XbcdefghijklY",) * 2
        assert samples.sampler == sampler and samples.generated == 14
        assert samples.seconds > 0 and samples.tokens_per_second > 0
        assert samples.calls == 7 or sampler == "ancestral"
        assert samples.calls <= samples.steps

    def test_fewer_steps_draw_several_tokens_at_once(self):
        whole = canvas(BYTES, length=10)
        samples = sample_text(KEY, model(alphabet), whole, sampler="left_to_right", steps=4)
        assert samples.texts == ("abcdefghij",) and samples.calls == 4
        samples = sample_text(KEY, model(alphabet), whole, steps=99)
        assert samples.calls == samples.steps == 10  # one call per token is enough

    def test_watching_changes_no_sample(self):
        gaps = canvas(BYTES, template="ab{{6}}")
        plain = sample_text(KEY, model(two_letters), gaps, batch=3)
        watched = sample_text(KEY, model(two_letters), gaps, batch=3, watch=True)
        assert plain.frames is None and plain.texts == watched.texts
        assert watched.frames.shape == (7, 3, 8) and watched.times.shape == (7,)
        masks = (watched.frames == MASKED.mask_id).sum(-1)
        assert (masks == np.arange(6, -1, -1)[:, None]).all()
        assert watched.times[0] > watched.times[1] > watched.times[-1] == 0

    def test_law_temperature_and_nucleus(self):
        def share_of_a(**settings):
            samples = sample_text(
                KEY, model(two_letters), canvas(BYTES, length=16), batch=256, steps=4, **settings
            )
            assert set("".join(samples.texts)) <= {"a", "b"}
            return "".join(samples.texts).count("a") / 4096

        assert abs(share_of_a() - 0.8) < 4 * np.sqrt(0.16 / 4096)
        # At temperature 1/2 the odds 4 : 1 are 16 : 1.
        assert abs(share_of_a(temperature=0.5) - 16 / 17) < 4 * np.sqrt(0.06 / 4096)
        assert share_of_a(nucleus=0.7) == 1.0

    def test_the_model_is_told_times_that_fit_the_masks_left(self):
        seen = []

        def watching(tokens, t):
            left = (tokens == 256).mean(-1)
            jax.debug.callback(lambda *x: seen.append(x), left, jnp.broadcast_to(t, left.shape))
            return alphabet(tokens, t)

        whole = canvas(BYTES, length=16)
        sample_text(KEY, model(watching), whole, sampler="left_to_right")
        jax.effects_barrier()
        for left, t in seen:
            np.testing.assert_allclose(MASKED.schedule.noise_rate(t), left, atol=2e-3)
        assert len(seen) == 16

    def test_a_second_run_traces_nothing(self):
        traces = []

        def counted(tokens, t):
            traces.append(1)
            return alphabet(tokens, t)

        counting, settings = model(counted), {"sampler": "ancestral", "steps": 8}
        sample_text(KEY, counting, canvas(BYTES, length=8), **settings)
        first = len(traces)
        other = canvas(BYTES, prompt="ab", length=8)
        sample_text(jax.random.fold_in(KEY, 1), counting, other, temperature=0.5, **settings)
        assert len(traces) == first > 0

    def test_plain_functions_are_lifted(self):
        plain = TextModel(alphabet, MASKED, BYTES)
        assert sample_text(KEY, plain, canvas(BYTES, length=3), progress=True).texts == ("abc",)


class TestAutoregressive:
    def test_continues_a_prompt_without_showing_masks_to_the_model(self):
        samples = sample_text(KEY, model(successor, None), canvas(BYTES, prompt="xa", length=6))
        assert samples.texts == ("xabcde",) and samples.calls == 4

    def test_starts_from_the_end_of_a_document(self):
        samples = sample_text(KEY, model(successor, None), canvas(BYTES, length=3), watch=True)
        assert samples.tokens.tolist() == [[1, 2, 3]]  # after eos_id = 0, which is not shown
        assert samples.generated == 3 and samples.frames.shape == (4, 1, 3)

    def test_refuses_gaps_it_cannot_see_past(self):
        with pytest.raises(ValueError, match="sees only what is on the left"):
            sample_text(KEY, model(successor, None), canvas(BYTES, template="a___b"))


class TestUniform:
    def test_ancestral_with_given_tokens(self):
        gaps = canvas(BYTES, template="X___e")
        samples = sample_text(KEY, model(alphabet, UNIFORM), gaps, batch=2, steps=16)
        assert samples.texts == ("Xbcde",) * 2 and samples.calls == 16

    @pytest.mark.parametrize("sampler", ["first_hitting", "left_to_right"])
    def test_others_are_refused_with_the_one_that_fits(self, sampler):
        with pytest.raises(ValueError, match=r"does not fit Uniform.*choose from \['ancestral'\]"):
            sample_text(KEY, model(alphabet, UNIFORM), canvas(BYTES, length=3), sampler=sampler)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "greedy"}, "choose from"),
        ({"steps": -1}, "steps=-1"),
        ({"nucleus": 0.0}, "nucleus=0.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_senseless_numbers_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sample_text(KEY, model(alphabet), canvas(BYTES, length=3), **settings)


def test_a_full_canvas_is_refused():
    full = Canvas(np.array([97], np.int32), np.array([True]))
    with pytest.raises(ValueError, match="no open token"):
        sample_text(KEY, model(alphabet), full)


def test_ends_of_documents_are_readable():
    assert readable(np.array([0, 97, 0, 0, 98]), BYTES) == "<end>a<end><end>b"
