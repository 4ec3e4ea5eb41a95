"""Our renderer writes what transformers writes, knows where contents lie, and stays inside its limits."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from app.contracts.conversation import Message
from app.text.check import check_template
from app.text.limited import limited
from app.text.template import CHATML, PLAIN, ChatTemplate, TemplateFault

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GENERATION = (
    "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}<|im_start|>assistant\n"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{%- else -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
TALK = [
    Message(role="user", content="  What is <b>RAM</b>? "),
    Message(role="assistant", content="Memory.\n\nFast & small."),
    Message(role="user", content="日本語 🙂"),
    Message(role="assistant", content="{{ 7 * 7 }}"),
]


@pytest.mark.parametrize(
    "source", [CHATML, PLAIN, LLAMA3, GEMMA, GENERATION], ids=["chatml", "plain", "llama3", "gemma", "generation"]
)
@pytest.mark.parametrize("prompt", [False, True])
def test_equal_to_transformers(source: str, prompt: bool) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    talk = TALK[:3] if prompt else TALK
    turns = [{"role": m.role, "content": m.content} for m in talk]
    theirs, _ = render_jinja_template([turns], chat_template=source, add_generation_prompt=prompt, **special)
    assert ChatTemplate(source, special).text(talk, add_generation_prompt=prompt) == theirs[0]


@pytest.mark.parametrize("source", [CHATML, PLAIN, LLAMA3, GEMMA, GENERATION])
def test_spans_hold_the_contents(source: str) -> None:
    rendered = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).rendered(TALK)
    found = [rendered.text[start:end].strip() for start, end in rendered.spans]
    assert found == [m.content.strip() for m in TALK]


def test_a_template_that_rewrites_contents_is_refused_by_name() -> None:
    shouting = CHATML.replace("message['content']", "message['content'] | upper")
    with pytest.raises(TemplateFault, match=r"changes the text of message 1 \(user\)"):
        ChatTemplate(shouting).rendered([Message(role="user", content="hello")])


def test_a_template_that_drops_a_message_is_refused() -> None:
    forgetful = "{% for message in messages[1:] %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(TemplateFault, match="leaves out or moves message 1"):
        ChatTemplate(forgetful).rendered(TALK)


def test_a_refusal_of_the_template_is_told() -> None:
    with pytest.raises(TemplateFault, match="System role not supported"):
        ChatTemplate(GEMMA, {"bos_token": ""}).text([Message(role="system", content="Be kind.")])


@pytest.mark.parametrize(
    "source",
    [
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_code_does_not_run(source: str) -> None:
    with pytest.raises(TemplateFault):
        ChatTemplate(source).text(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 'a' * 10 ** 7 }}",
    ],
    ids=["time", "memory", "output"],
)
def test_waste_is_stopped_in_the_child(source: str) -> None:
    with pytest.raises(TemplateFault):
        check_template(source)


def test_a_good_template_passes_the_check() -> None:
    assert check_template(CHATML).endswith("<|im_start|>user\nThanks.<|im_end|>\n<|im_start|>assistant\n")


SLEEPER = "{% if messages[-1].content == 'boom' %}{{ BOOM }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    "waste",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    ],
    ids=["time", "memory", "doubling"],
)
def test_a_template_that_behaves_until_it_is_asked_something_is_stopped_then(waste: str) -> None:
    """The trial at the import cannot find these; the server renders them elsewhere and lives on."""
    source = SLEEPER.replace("{{ BOOM }}", waste)
    assert check_template(source)
    template = limited(ChatTemplate(source))
    good = [Message(role="user", content="hello")]
    expected = ChatTemplate(CHATML).text(good, add_generation_prompt=True)
    assert template.text(good, add_generation_prompt=True) == expected
    with pytest.raises(TemplateFault):
        template.text([Message(role="user", content="boom")], add_generation_prompt=True)
    assert template.text(good, add_generation_prompt=True) == expected
    assert template.rendered(good) == ChatTemplate(CHATML).rendered(good)


def test_our_own_templates_need_no_process() -> None:
    ours = ChatTemplate(CHATML)
    assert limited(ours) is ours
