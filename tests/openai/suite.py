"""The official OpenAI client, unchanged, against a daemon. Arguments: base URL, a document's name."""

import sys
import urllib.request

import openai

base, document = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
MODEL = client.models.list().data[0].id
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def chat(**more):
    wish = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 12}
    return client.chat.completions.create(**(wish | more))


def refused(kind, word, call):
    try:
        call()
    except kind as error:
        assert word in str(error), error
    else:
        raise AssertionError(f"{word}: was not refused")


def models():
    assert client.models.retrieve(MODEL).id == MODEL


def an_answer():
    answer = chat()
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and "Paris" in choice.message.content, choice
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 12
    assert answer.addenda[0]["mode"] == "full" and answer.addenda[0]["exact"]


def a_stream_says_the_same():
    whole = chat().choices[0].message.content
    pieces = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole, (text, whole)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].usage.completion_tokens > 0 and not pieces[-1].choices
    assert sum(bool(piece.choices and piece.choices[0].finish_reason) for piece in pieces) == 1


def several_answers():
    answer = chat(n=2, temperature=1.0, seed=5)
    again = chat(n=2, temperature=1.0, seed=5)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert texts == [choice.message.content for choice in again.choices]
    assert texts[0] != texts[1], texts
    streamed = {0: "", 1: ""}
    for piece in chat(n=2, temperature=1.0, seed=5, stream=True):
        streamed[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert list(streamed.values()) == texts, (streamed, texts)


def logprobs():
    content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    first = content[0]
    assert len(first.top_logprobs) == 3 and first.logprob <= 0
    assert first.token == first.top_logprobs[0].token
    assert bytes(first.bytes).decode() == first.token
    legacy = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2
    ).choices[0]
    assert len(legacy.logprobs.tokens) == 4 and len(legacy.logprobs.top_logprobs[0]) == 2
    assert "".join(legacy.logprobs.tokens) == legacy.text


def a_stop_string_ends_an_answer():
    whole = chat(max_tokens=24).choices[0].message.content
    word = whole.split()[2]
    stopped = chat(max_tokens=24, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop" and word not in stopped.message.content
    assert whole.startswith(stopped.message.content)


def completions_of_several_prompts():
    answer = client.completions.create(
        model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=3, temperature=0
    )
    alone = client.completions.create(model=MODEL, prompt="A, B,", max_tokens=3, temperature=0)
    assert len(answer.choices) == 2 and answer.choices[1].text == alone.choices[0].text


def documents_come_by_an_extra_field():
    extra = {"addenda": {"documents": [document], "mode": "packet"}}
    answer = chat(extra_body=extra)
    made = answer.addenda[0]
    assert made["mode"] == "packet" and not made["exact"] and made["packet_tokens"] > 0, made
    assert answer.usage.prompt_tokens_details.cached_tokens >= made["packet_tokens"]


def mistakes():
    refused(openai.NotFoundError, "not served here", lambda: chat(model="gpt-4"))
    refused(openai.BadRequestError, "temperature", lambda: chat(temperature=9))
    refused(openai.BadRequestError, "tools", lambda: chat(tools=[{"type": "function"}]))
    refused(openai.BadRequestError, "n asks for 99", lambda: chat(n=99))
    wrong = {"addenda": {"mode": "guess"}}
    refused(openai.BadRequestError, "addenda.mode", lambda: chat(extra_body=wrong))
    unknown = {"no_such_field": 1}
    refused(openai.BadRequestError, "no_such_field", lambda: chat(extra_body=unknown))
    missing = {"addenda": {"documents": ["nobody-put-this"], "mode": "packet"}}
    refused(openai.NotFoundError, "nobody-put-this", lambda: chat(extra_body=missing))
    refused(openai.BadRequestError, "max_tokens", lambda: chat(max_tokens=-1))
    refused(openai.BadRequestError, "messages", lambda: chat(messages=[]))


def metrics():
    text = urllib.request.urlopen(f"{base}/metrics").read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["addenda_ttft_seconds_count"]) >= 10
    assert float(values['addenda_tokens_total{source="generated"}']) >= 50
    assert float(values['addenda_tokens_total{source="packet"}']) > 0
    assert float(values['addenda_answers_total{outcome="well"}']) >= 10
    assert text.rstrip().endswith("# EOF")


for check in [
    models,
    an_answer,
    a_stream_says_the_same,
    several_answers,
    logprobs,
    a_stop_string_ends_an_answer,
    completions_of_several_prompts,
    documents_come_by_an_extra_field,
    mistakes,
    metrics,
]:
    check()
    print("ok", check.__name__)
