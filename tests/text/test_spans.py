"""Which ids of a row are asked for, held against transformers' own masks where a template can mark them."""

import string

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.text import spans
from limbeck.text.bytes_tokenizer import BOS, EOS, ByteTokenizer
from limbeck.text.spans import Memory, encode
from limbeck.text.tokens import Tokens, fingerprint, specials, tokens

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the other dogs answer it",
    "what is the answer to that question? the answer is 42",
    "how many eggs are in the basket, and what does the fox say about them",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ (m.content or '') + ((m.tool_calls | tojson) if m.tool_calls else '') + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% else %}...{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def trained(size: int = 320, template: str | None = CHATML, corpus: list[str] = CORPUS, **added) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE whose end of turn is also its end of text and its padding, as in SmolLM2."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(corpus, trainer)
    out = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>", **added
    )
    out.chat_template = template
    return out


@pytest.fixture(scope="module")
def bpe():
    return trained()


def asked_text(row: Row, tokenizer) -> str:
    ids, asked = encode(row, tokenizer)
    assert len(ids) == len(asked)
    return tokenizer.decode([i for i, a in zip(ids, asked, strict=True) if a])


def chat(*turns: tuple[str, str], **more) -> Row:
    return Row("chat", {"messages": [{"role": role, "content": content} for role, content in turns], **more})


def refusal(row: Row, tokenizer) -> Refused:
    with pytest.raises(Refused) as caught:
        encode(row, tokenizer)
    assert caught.value.code == 2
    return caught.value


def test_every_position_of_a_text_is_asked_and_no_begin_is_added_unless_the_tokenizer_adds_one(bpe):
    ids, asked = encode(Row("a", {"text": "the fox"}), bpe)
    assert ids == bpe.encode("the fox", add_special_tokens=False) and all(asked)
    ids, asked = encode(Row("a", {"text": "hé"}), ByteTokenizer())
    assert ids == [BOS, 0x68, 0xC3, 0xA9] and asked == [True] * 4


def test_prompt_and_answer_share_no_token_and_the_end_of_text_is_asked(bpe):
    ids, asked = encode(Row("a", {"prompt": "the ans", "answer": "wer"}), bpe)
    prompt, answer = bpe.encode("the ans"), bpe.encode("wer")
    assert bpe.encode("the answer") != prompt + answer, "else this test shows nothing"
    assert ids == prompt + answer + [bpe.eos_token_id]
    assert asked == [False] * len(prompt) + [True] * (len(answer) + 1)
    assert encode(Row("b", {"prompt": "a", "answer": "b"}), ByteTokenizer()) == ([BOS, 97, 98, EOS], [False, False, True, True])


def test_an_open_answer_has_no_end_and_a_prompt_alone_asks_for_nothing():
    assert encode(Row("a", {"prompt": "a", "answer": "b", "open": True}), ByteTokenizer()) == ([BOS, 97, 98], [False, False, True])
    assert encode(Row("a", {"prompt": "ab"}), ByteTokenizer()) == ([BOS, 97, 98], [False] * 3)


def test_a_tokenizer_that_frames_texts_frames_prompt_and_answer_together():
    framed = trained()
    framed.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>", special_tokens=[("<|im_start|>", 1), ("<|endoftext|>", 0)]
    )
    assert specials(framed) == ((1,), (0,))
    ids, asked = encode(Row("a", {"prompt": "fox", "answer": "dog"}), framed)
    bare = [framed.encode(word, add_special_tokens=False) for word in ("fox", "dog")]
    assert ids == [1, *bare[0], *bare[1], 0] and asked == [False] * (1 + len(bare[0])) + [True] * (len(bare[1]) + 1)


def test_only_the_assistant_is_asked_up_to_its_end_of_turn_and_the_generation_prompt_is_not(bpe):
    row = chat(("system", "be short"), ("user", "what?"), ("assistant", "the answer"), ("user", "and?"), ("assistant", "42"))
    assert asked_text(row, bpe) == "the answer<|im_end|>42<|im_end|>"
    assert encode(row, bpe)[0] == bpe.apply_chat_template(row.content["messages"], tokenize=True)["input_ids"]


def test_a_token_that_begins_in_the_generation_prompt_is_not_asked_though_it_ends_in_the_answer():
    lines = trained(corpus=[*CORPUS, "one\n\n\ntwo\n\n\n" * 20])
    row = chat(("user", "what?"), ("assistant", "\n\nthe fox"))
    ids, asked = encode(row, lines)
    assert lines.decode(ids[asked.index(True) - 1]) == "\n\n", "else this test shows nothing"
    assert asked_text(row, lines) == "\nthe fox<|im_end|>"


def test_an_end_of_text_within_an_answer_is_asked_though_it_is_also_the_padding(bpe):
    assert bpe.pad_token_id == bpe.eos_token_id
    row = chat(("user", "what <|im_end|> is it?"), ("assistant", "the <|im_end|> token"))
    ids, asked = encode(row, bpe)
    assert [a for i, a in zip(ids, asked, strict=True) if i == bpe.eos_token_id] == [False, False, True, True]
    assert asked_text(row, bpe) == "the <|im_end|> token<|im_end|>"


def test_tool_messages_and_tool_calls_reach_the_template_untouched_and_are_not_asked():
    seen = []

    class Watching(transformers.PreTrainedTokenizerFast):
        def apply_chat_template(self, messages, tools=None, **rest):
            seen.append((list(messages), tools))
            return super().apply_chat_template(messages, tools=tools, **rest)

    source = trained()
    watching = Watching(tokenizer_object=source.backend_tokenizer, eos_token="<|im_end|>")
    watching.chat_template = CHATML
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "eggs", "arguments": {"basket": 1}}}]}
    said = {"role": "tool", "name": "eggs", "content": "12"}
    messages = [{"role": "user", "content": "how many?"}, call, said, {"role": "assistant", "content": "12 eggs"}]
    tools = [{"type": "function", "function": {"name": "eggs", "description": "counts", "parameters": {"type": "object", "properties": {}}}}]
    row = Row("a", {"messages": messages, "tools": tools})
    assert asked_text(row, watching) == "12 eggs<|im_end|>"
    assert all(said == messages[: len(said)] and given is tools for said, given in seen) and len(seen) == 3
    assert '"basket"' in asked_text(Row("b", {**row.content, "turns": (1, 3)}), watching)


def test_a_message_that_opens_a_chat_answers_nothing(bpe):
    assert asked_text(chat(("assistant", "hello"), ("user", "the fox?"), ("assistant", "yes")), bpe) == "yes<|im_end|>"
    assert asked_text(chat(("user", "the fox?"), ("user", "the dog?")), bpe) == ""


WORDS = st.text(alphabet=string.ascii_lowercase + " \n\t.é日🙂<|>", max_size=12)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), WORDS), min_size=1, max_size=6)


MARKED = trained()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(TURNS)
def test_what_is_asked_equals_the_mask_of_transformers_where_a_template_marks_its_assistant(turns):
    tokenizer = MARKED
    turns = [("user", "hello"), *turns]
    row = chat(*turns)
    marked = tokenizer.apply_chat_template(row.content["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, asked = encode(row, tokenizer)
    assert ids == list(marked["input_ids"])
    straddles = {i for i in range(1, len(ids)) if bool(marked["assistant_masks"][i]) and not asked[i]}
    text = tokenizer.apply_chat_template(row.content["messages"], tokenize=False)
    whole = tokens(text, tokenizer)
    assert all(text[whole.starts[i]] == "\n" for i in straddles), "only a token that begins in the generation prompt may differ"
    assert [a for i, a in enumerate(asked) if i not in straddles] == [bool(a) for i, a in enumerate(marked["assistant_masks"]) if i not in straddles]


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_turn_and_may_still_ask_for_the_last():
    forgetful = trained(template=FORGETFUL)
    row = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    error = refusal(row, forgetful)
    assert (error.slug, error.where) == ("template", "row chat  messages.1")
    assert error.expected == "a chat template that leaves earlier turns as they were"
    assert error.got == "turn 1 is written differently once others follow"
    assert error.do == "set ask: last in the chat source: then only the last answer of each chat is learnt"
    assert asked_text(Row("b", {**row.content, "turns": (3,)}), forgetful) == "d<|im_end|>"


def test_a_template_whose_generation_prompt_is_no_beginning_of_the_answer_is_refused():
    thinking = trained(
        template="{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}"
        "assistant:<think>{% endif %}"
    )
    error = refusal(chat(("user", "a"), ("assistant", "b")), thinking)
    assert error.where == "row chat  messages.1" and error.got == "what stands before turn 1 changes with the answer"
    assert "before an answer, given or not yet" in error.expected and error.do == "use another chat template, or rows of prompt and answer"


def test_a_tokenizer_without_a_chat_template_is_refused(bpe):
    for tokenizer in (ByteTokenizer(), trained(template=None)):
        error = refusal(chat(("user", "a"), ("assistant", "b")), tokenizer)
        assert (error.slug, error.where, error.expected, error.got) == ("template", "row chat", "a tokenizer with a chat template", "none")
        assert error.do == "use a chat model, or rows of prompt and answer"


def test_what_a_template_raises_becomes_a_refusal_with_its_words():
    strict = trained(template="{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{% endfor %}")
    error = refusal(chat(("system", "a"), ("user", "b"), ("assistant", "c")), strict)
    assert error.slug == "template" and error.got == "no system here" and error.expected == "messages that the chat template can write"
    assert error.where == "row chat  messages.2" and error.do == "change or leave out this chat"


def test_a_template_runs_in_a_sandbox():
    hostile = trained(template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert refusal(chat(("user", "b"), ("assistant", "c")), hostile).slug == "template"


def test_a_row_without_text_is_refused(bpe):
    error = refusal(Row("k", {"pixels": 1}), bpe)
    assert (error.slug, error.where, error.expected) == ("row", "row k", "text, prompt and answer, or messages")
    assert error.got == "none of them" and error.do == "add a data step that writes text"


def test_an_open_chat_ends_with_its_last_words(bpe):
    row = chat(("user", "what?"), ("assistant", "the answer is"), open=True)
    ids, _ = encode(row, bpe)
    assert bpe.decode(ids).endswith("assistant\nthe answer is") and asked_text(row, bpe) == "the answer is"


def test_precomputed_ids_are_taken_by_their_tokenizer_alone(bpe):
    row = Row("a", {"text": "fox", "ids": {fingerprint(bpe): (7, 8, 9)}})
    assert encode(row, bpe) == ([7, 8, 9], [True] * 3)
    assert encode(row, ByteTokenizer())[0] == [BOS, *b"fox"]
    assert encode(Row("a", {**row.content, "asked": {fingerprint(bpe): (False, True, True)}}), bpe)[1] == [False, True, True]


def test_two_loads_of_one_tokenizer_have_one_fingerprint_and_others_have_others(tmp_path, bpe):
    bpe.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again is not bpe and fingerprint(again) == fingerprint(bpe) == fingerprint(trained())
    assert fingerprint(ByteTokenizer()) == fingerprint(ByteTokenizer())
    framed = trained()
    framed.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    spaced = trained()
    spaced.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    others = [ByteTokenizer(), trained(310), trained(template=None), framed, spaced]
    assert len({fingerprint(x) for x in [bpe, *others]}) == 6


def test_a_fingerprint_and_what_is_remembered_follow_a_tokenizer_that_is_changed():
    tokenizer, row = trained(), chat(("user", "a"), ("assistant", "b"))
    before, ids = fingerprint(tokenizer), encode(row, tokenizer)[0]
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<|endoftext|>")
    assert fingerprint(tokenizer) != before and encode(row, tokenizer)[0] != ids


def test_padding_set_by_whoever_opens_a_model_does_not_change_the_fingerprint():
    tokenizer = trained()
    before = fingerprint(tokenizer)
    tokenizer.pad_token = "<|endoftext|>"
    spans.MEMORIES.clear()
    assert fingerprint(tokenizer) == before == fingerprint(trained())


def test_rows_with_one_key_and_other_content_are_not_mixed_up_and_results_may_be_changed_by_who_gets_them():
    tokenizer = ByteTokenizer()
    first = encode(Row("same", {"text": "ab"}), tokenizer)
    first[0].append(0)
    assert encode(Row("same", {"text": "ab"}), tokenizer)[0] == [BOS, 97, 98]
    assert encode(Row("same", {"text": "cd"}), tokenizer)[0] == [BOS, 99, 100]
    assert encode(Row("same", {"prompt": "cd"}), tokenizer)[1] == [False] * 3


def test_a_row_that_is_drawn_again_is_not_rendered_again(monkeypatch):
    tokenizer, calls = trained(), []
    monkeypatch.setattr(spans, "fresh", lambda *args: calls.append(1) or ([1], [True]))
    for _ in range(3):
        encode(Row("a", {"text": "ab"}), tokenizer)
    assert len(calls) == 1


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(spans, "REMEMBERED_TOKENS", 100)
    memory = Memory()
    for n in range(50):
        memory.keep(n % 30, {"text": str(n)}, ([0] * 9, [True] * 9))
    assert memory.num_tokens == 100 and len(memory.rows) == 10
    for _ in range(5):
        memory.keep(0, {"text": "0"}, ([0] * 9, [True] * 9))
    assert len(memory.rows) == 10, "a row that is kept again takes the place of itself alone"
    for n in range(300):
        memory.keep(("empty", n), {"text": ""}, ([], []))
    assert len(memory.rows) == 100 and memory.recall(("empty", 299), {"text": ""}) == ([], [])


def test_tokens_know_their_characters(bpe):
    assert tokens("aé🙂", ByteTokenizer()) == Tokens([97, 0xC3, 0xA9, 0xF0, 0x9F, 0x99, 0x82], [0, 1, 1, 2, 2, 2, 2], [1, 2, 2, 3, 3, 3, 3])
    found = tokens("the fox 日", bpe)
    assert [("the fox 日"[a:b]) for a, b in zip(found.starts[:2], found.ends[:2], strict=True)] == ["the", " fox"]
    assert found.ids == bpe.encode("the fox 日")


def test_a_tokenizer_that_does_not_say_where_its_ids_stand_is_refused_where_that_is_needed():
    class Slow:
        is_fast = False

    with pytest.raises(Refused) as caught:
        tokens("a", Slow())
    error = caught.value
    assert (error.slug, error.where, error.got) == ("tokenizer", "Slow", "one that does not")
    assert error.expected == "a tokenizer that says which characters each id stands for"
    assert error.do == "save the model with its fast tokenizer (tokenizer.json)"


def test_chats_are_read_by_tokenizers_that_do_not_say_where_their_ids_stand(bpe):
    class Slow:
        is_fast, chat_template = False, CHATML
        apply_chat_template, get_added_vocab, get_vocab, __len__ = bpe.apply_chat_template, bpe.get_added_vocab, bpe.get_vocab, lambda self: len(bpe)

        def encode(self, text, add_special_tokens=True):
            return bpe.encode(text, add_special_tokens=add_special_tokens)

    row = chat(("user", "what?"), ("assistant", "the answer"), ("user", "and?"), ("assistant", "42"))
    assert encode(row, Slow()) == encode(row, bpe)


def test_a_tokenizer_that_cuts_out_digits_first_has_another_fingerprint_though_its_vocabulary_is_the_same():
    def made(first):
        letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        core = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate([*letters, "\u0120\u0120"])}, [("\u0120", "\u0120")]))
        core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*first, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
        return transformers.PreTrainedTokenizerFast(tokenizer_object=core)

    plain, again, digits = made([]), made([]), made([tokenizers.pre_tokenizers.Digits(individual_digits=True)])
    assert plain.encode("a  1") != digits.encode("a  1")  # a cache of what was said about the one is not for the other
    assert fingerprint(plain) == fingerprint(again) != fingerprint(digits)
