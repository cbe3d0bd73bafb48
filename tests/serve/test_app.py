"""What is asked and answered, over a real socket; the scheduler is a fake."""

import base64
import dataclasses
import json
import re
import threading
from typing import Any

import jsonschema
import pytest
from tests.serve.conftest import (
    CARD,
    INPUTS,
    SERVED,
    Fake,
    Serving,
    an_answer,
    multipart,
    picture,
    post,
    serving,
    wait_for,
)

from offramp.errors import OfframpError
from offramp.serve.card import Card
from offramp.serve.contract import RefusedError


def described(server: Serving, path: str, method: str, status: int, kind: str = "application/json") -> dict[str, Any]:
    """The schema that openapi.json has for an answer, with all that it refers to."""
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    return {**content[kind]["schema"], "components": document["components"]}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_answered(kind: str, server: Serving) -> None:
    status, answer = server.predict(picture(2, kind=kind), f"image/{kind.lower()}")
    assert status == 200
    (one,) = answer["predictions"]
    assert one == {
        "label": 2,
        "class_name": "two",
        "confidence": 0.9,
        "exit": 2,
        "operations": 0.5,
        "rung": 1,
        "promise": "At most 1 % of answers are worse.",
        "in_time": True,
        "queued_ms": 1.5,
        "computed_ms": 2.5,
        "fingerprint": SERVED.fingerprint,
    }
    jsonschema.validate(answer, described(server, "/v1/predict", "post", 200))


def test_several_are_answered_in_their_order_and_each_by_itself(server: Serving) -> None:
    contents = [picture(1), b"no image", picture(0), picture(2)]
    _, in_parts = server.predict(multipart(*contents), "multipart/form-data; boundary=edge")
    words = json.dumps({"images": [base64.b64encode(content).decode() for content in contents]})
    status, in_json = server.predict(words.encode(), "application/json")
    assert status == 200
    assert in_parts == in_json
    assert [one.get("label") for one in in_json["predictions"]] == [1, None, 0, 2]
    assert in_json["predictions"][1] == {"error": "An image must be a PNG, JPEG or WebP file.", "status": 415}
    jsonschema.validate(in_json, described(server, "/v1/predict", "post", 200))


def test_the_query_is_handed_on(server: Serving) -> None:
    _, answer = server.predict(picture(), path="/v1/predict?rung=2&deadline_ms=50")
    (one,) = answer["predictions"]
    assert (one["rung"], one["in_time"], one["promise"]) == (2, False, None)


@pytest.mark.parametrize(
    "query",
    "rung=3 rung=0 rung=1.5 rung=x deadline_ms=nan deadline_ms=-1 deadline_ms=inf deadline=3 deadline_ms= "
    "%ff=1 rung=%00 rung=1&rung=2".split(),
)
def test_a_query_that_means_nothing_is_refused(query: str, shared: Serving) -> None:
    status, answer = shared.predict(picture(), path=f"/v1/predict?{query}")
    assert status == 422
    jsonschema.validate(answer, described(shared, "/v1/predict", "post", 422))


@pytest.mark.parametrize("query", ["rung=" + "9" * 5000, "&".join(["rung=1"] * 20)])
def test_a_long_query_is_refused(query: str, shared: Serving) -> None:
    """Python refuses to read numbers of more than 4,300 digits, by an error that nobody expects."""
    assert shared.predict(picture(), path=f"/v1/predict?{query}")[0] == 422
    assert shared.ask("GET", "/v1/samples/" + "9" * 5000)[0] == 404


def test_exits_come_one_by_one(server: Serving) -> None:
    status, headers, content = server.ask(
        "POST", "/v1/predict", picture(1), {"Content-Type": "image/png", "Accept": "text/event-stream"}
    )
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = [re.fullmatch(r"event: (\w+)\ndata: (.*)", text) for text in content.decode().split("\n\n")[:-1]]
    names = [event[1] for event in events if event]
    values = [json.loads(event[2]) for event in events if event]
    assert names == ["exit", "exit", "answer"]
    schemas = json.loads(server.ask("GET", "/openapi.json")[2])["components"]
    for name, value in zip(names, values, strict=True):
        kind = "Prediction" if name == "answer" else "ExitEvent"
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{kind}", "components": schemas})
    assert [value.get("leaves") for value in values] == [False, True, None]
    assert values[0]["threshold"] == 0.9
    assert values[1]["top"][0] == {"label": 1, "class_name": "one", "probability": pytest.approx(0.9)}


def test_an_event_is_sent_before_the_next_exit_has_answered(server: Serving) -> None:
    first = threading.Event()
    submit = server.schedules.submit

    def slow(request: Any) -> Any:
        step = request.on_step
        assert step is not None

        def on_step(one: Any) -> None:
            step(one)
            if one.exit == 1:
                first.wait(5)

        return submit(dataclasses.replace(request, on_step=on_step))

    server.schedules.submit = slow  # type: ignore[method-assign]
    content = picture()
    lines = [b"POST /v1/predict HTTP/1.1", b"Host: x", b"Content-Type: image/png", b"Accept: text/event-stream"]
    connection = server.open(b"\r\n".join([*lines, b"Content-Length: %d" % len(content), b"", content]))
    received = b""
    while b"event: exit" not in received:
        received += connection.recv(65536)
    assert b"event: answer" not in received
    first.set()
    while b"event: answer" not in received:
        received += connection.recv(65536)


def test_events_of_several_images_are_refused(server: Serving) -> None:
    body = multipart(picture(), picture())
    headers = {"Content-Type": "multipart/form-data; boundary=edge", "Accept": "text/event-stream"}
    assert server.ask("POST", "/v1/predict", body, headers)[0] == 422


@pytest.mark.parametrize(
    ("reason", "status"), [("full", 429), ("draining", 503), ("deadline", 503), ("not finite", 422)]
)
def test_a_refusal_of_the_scheduler_has_its_status(reason: str, status: int, server: Serving) -> None:
    server.schedules.outcome = lambda answer: RefusedError("Why.", reason, 3 if reason == "full" else None)
    headers = {"Content-Type": "image/png"}
    found, sent, content = server.ask("POST", "/v1/predict", picture(), headers)
    assert (found, json.loads(content)) == (status, {"error": "Why."})
    assert sent.get("retry-after") == ("4" if reason == "full" else None)
    _, _, content = server.ask("POST", "/v1/predict", picture(), {**headers, "Accept": "text/event-stream"})
    assert b'event: error\ndata: {"error":"Why."}' in content
    assert server.counted(f'offramp_refusals_total{{reason="{reason}"}}') == 2


def test_full_is_429_before_anything_is_decoded(server: Serving) -> None:
    server.schedules.hold.set()
    for number in range(server.schedules.capacity):
        server.open(post_of(picture()))
        assert wait_for(lambda number=number: server.schedules.submitted == number + 1)  # type: ignore[misc]
    assert json.loads(server.ask("GET", "/readyz")[2])["status"] == "not ready"
    status, headers, content = server.ask("POST", "/v1/predict", b"not even an image", {"Content-Type": "image/png"})
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert json.loads(content) == {"error": "Full."}
    server.schedules.hold.clear()
    assert wait_for(lambda: server.ask("GET", "/readyz")[0] == 200)


def test_a_full_server_refuses_by_the_head_and_goes_on_with_the_connection() -> None:
    schedules = Fake(capacity=1)
    with serving(schedules, token="t" * 16) as server:
        authorized = b"Authorization: Bearer " + b"t" * 16
        schedules.hold.set()
        server.open(post(picture(), authorized))
        assert wait_for(lambda: schedules.submitted == 1)
        whole = post(picture(), authorized)
        connection = server.open(whole[:-10])
        assert an_answer(connection).startswith(b"HTTP/1.1 429 ")  # before the body is there
        assert an_answer(server.open(post(picture()))).startswith(b"HTTP/1.1 401 ")  # who may not ask learns no more
        assert server.counted('offramp_refusals_total{reason="full"}') == 1
        assert server.counted('offramp_requests_total{path="/v1/predict",status="429"}') == 1
        schedules.hold.clear()
        assert wait_for(lambda: not schedules.waiting)
        connection.sendall(whole[-10:] + post(picture(), authorized))
        assert an_answer(connection).startswith(b"HTTP/1.1 200 ")


def test_requests_that_the_loop_is_behind_with_take_places() -> None:
    """Else all that come at once are let in, and none is answered in time."""
    schedules = Fake(capacity=3)
    with serving(schedules) as server:

        def scope() -> dict[str, Any]:
            return {"path": "/v1/predict", "method": "POST", "query_string": b"", "headers": [(b"host", b"localhost")]}

        refused = [server.app.turned_away(scope()) for _ in range(5)]
        assert [error is None for error in refused] == [True, True, True, False, False]


def post_of(content: bytes) -> bytes:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    return head % len(content) + content


def test_a_client_that_hangs_up_frees_its_place(server: Serving) -> None:
    server.schedules.hold.set()
    connection = server.open(post_of(picture()))
    assert wait_for(lambda: len(server.schedules.waiting) == 1)
    connection.close()
    assert wait_for(lambda: server.schedules.cancelled == 1)
    assert server.schedules.waiting == []
    assert wait_for(lambda: server.counted("offramp_hung_up_total") == 1)


def test_a_client_that_hangs_up_among_several_images_frees_all_places(server: Serving) -> None:
    server.schedules.hold.set()
    body = multipart(*[picture()] * 5)
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
    connection = server.open(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert wait_for(lambda: len(server.schedules.waiting) == 5)
    connection.close()
    assert wait_for(lambda: server.schedules.cancelled == 5)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/model", "/v1/samples"])
def test_what_can_be_looked_at_is_as_described(path: str, shared: Serving) -> None:
    status, headers, content = shared.ask("GET", path)
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    jsonschema.validate(json.loads(content), described(shared, path, "get", 200))


def test_the_card(server: Serving) -> None:
    model = json.loads(server.ask("GET", "/v1/model")[2])
    assert model["accuracies"] == [80.0, 90.0, 95.5]
    assert [rung["thresholds"] for rung in model["ladder"]] == [[0.9, 0.8, None], [0.7, 0.6, None]]
    assert model["certificate"] == SERVED.promises[0]


def test_ready_is_warm_and_with_a_place(server: Serving) -> None:
    server.schedules.is_warm = False
    assert server.ask("GET", "/healthz")[0] == 200
    status, _, content = server.ask("GET", "/readyz")
    assert status == 503
    jsonschema.validate(json.loads(content), described(server, "/readyz", "get", 503))


def test_metrics_count_what_was_done(server: Serving) -> None:
    server.predict(picture())
    server.predict(b"nothing")
    server.app.metrics.batch(0, 3, 0.1)
    server.schedules.alarm = "Too many disagree."
    status, headers, content = server.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    text = content.decode()
    for line in (
        'offramp_requests_total{path="/v1/predict",status="200"} 1.0',
        'offramp_requests_total{path="/v1/predict",status="415"} 1.0',
        'offramp_refusals_total{reason="format"} 1.0',
        'offramp_exits_total{exit="2"} 1.0',
        'offramp_waiting{stage="1"} 0.0',
        'offramp_batch_rows_bucket{le="4.0",stage="1"} 1.0',
        "offramp_request_seconds_count 2.0",
        "offramp_guard_alarm 1.0",
        "offramp_rung 1.0",
    ):
        assert line in text


def test_paths_that_are_made_up_make_no_counters(server: Serving) -> None:
    for number in range(20):
        assert server.ask("GET", f"/nothing/{number}")[0] == 404
    assert wait_for(lambda: server.counted('offramp_requests_total{path="other",status="404"}') == 20)
    assert server.app.metrics.text().count(b'path="') < 6


@pytest.mark.parametrize(
    "path",
    "/v1/samples/1 /v1/samples/-1 /v1/samples/0/ /v1/samples/%2e%2e%2fconfig.json /v1/samples/..%2f..%2fetc%2fpasswd "
    "/../../etc/passwd //etc/passwd /v1/samples/0%00 /healthz/ /v1/samples/%D9%A0 /v1/samples/%ff /v1//model "
    "/%0d%0aSet-Cookie:%20a=b".split(),
)
def test_no_path_leads_out(path: str) -> None:
    with serving(card=Card(INPUTS, samples=((picture(), 1),))) as server:
        status, headers, content = server.ask("GET", path)
        assert status == 404
        assert json.loads(content).keys() == {"error"}
        assert "location" not in headers
        assert "set-cookie" not in headers


def test_samples_are_what_was_read_at_the_start() -> None:
    with serving(card=Card(INPUTS, samples=((picture(kind="WEBP"), None), (picture(), 1)))) as server:
        samples = json.loads(server.ask("GET", "/v1/samples")[2])["samples"]
        assert samples == [{"url": "/v1/samples/0", "label": None}, {"url": "/v1/samples/1", "label": 1}]
        _, headers, content = server.ask("GET", "/v1/samples/0")
        assert (headers["content-type"], content) == ("image/webp", picture(kind="WEBP"))


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/predict"), ("POST", "/v1/model"), ("DELETE", "/")])
def test_another_method_is_405(method: str, path: str, server: Serving) -> None:
    status, headers, content = server.ask(method, path)
    assert status == 405
    assert "allow" in headers
    assert json.loads(content).keys() == {"error"}


def test_an_error_of_ours_is_a_line_of_json_too(server: Serving, caplog: pytest.LogCaptureFixture) -> None:
    def broken(answer: Any) -> Any:
        return dataclasses.replace(answer, label=99)  # of no class

    server.schedules.outcome = broken
    status, answer = server.predict(picture())
    assert (status, answer) == (500, {"error": "The server has failed at this request."})
    assert wait_for(lambda: "IndexError" in caplog.text)
    assert server.ask("GET", "/healthz")[0] == 200


def test_the_page_runs_nothing_but_its_own_script(server: Serving) -> None:
    status, headers, content = server.ask("GET", "/")
    assert status == 200
    assert b"<html" in content
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_the_document_says_of_every_path_what_it_may_answer(server: Serving) -> None:
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method in methods.keys() - {"parameters"}:
            asked = path.replace("{number}", "0")
            status, _, content = server.ask(method.upper(), asked)
            responses = methods[method]["responses"]
            assert str(status) in responses, (path, method, status)
            schema = responses[str(status)]["content"].get("application/json")
            if schema is not None:
                jsonschema.validate(json.loads(content), {**schema["schema"], "components": document["components"]})


class TestReload:
    def test_what_was_prepared_for_the_one_before_is_prepared_again(self) -> None:
        """Unprotected, an image would be normalised as the old run says and answered by the new one."""
        schedules = Fake()
        new = dataclasses.replace(SERVED, fingerprint="n" * 64, name="new")
        turned = Card(dataclasses.replace(INPUTS, mean=(0.0, 10.0, 0.0)))  # then channel 1 is never the brightest

        async def reload() -> None:
            server.app.add(new, turned)
            schedules.now = new

        with serving(schedules, reload=reload) as server:
            decode = server.app._decoder.decode
            times = []

            async def decoded(content: bytes, inputs: Any) -> Any:
                image = await decode(content, inputs)
                times.append(inputs)
                if len(times) == 1:
                    await reload()
                return image

            server.app._decoder.decode = decoded  # type: ignore[method-assign]
            _, answer = server.predict(picture(1))
            assert len(times) == 2
            assert answer["predictions"][0]["fingerprint"] == new.fingerprint
            assert answer["predictions"][0]["label"] != 1

    def test_from_this_machine(self) -> None:
        schedules = Fake()

        async def reload() -> None:
            new = dataclasses.replace(SERVED, fingerprint="n" * 64)
            server.app.add(new, CARD)
            schedules.now = new

        with serving(schedules, reload=reload) as server:
            status, _, content = server.ask("POST", "/v1/reload")
            assert (status, json.loads(content)) == (200, {"fingerprint": "n" * 64})
            jsonschema.validate(json.loads(content), described(server, "/v1/reload", "post", 200))

    def test_what_is_served_is_kept_however_often_another_fails_to_take_over(self) -> None:
        with serving() as server:
            for number in range(10):
                server.app.add(dataclasses.replace(SERVED, fingerprint=str(number)), CARD)
                assert server.predict(picture())[0] == 200
            assert server.ask("GET", "/v1/model")[0] == 200

    def test_an_image_taken_in_before_is_answered_with_the_names_of_what_answers_it(self) -> None:
        schedules = Fake()
        new = dataclasses.replace(SERVED, fingerprint="n" * 64, class_names=("new", "newer", "newest"))
        with serving(schedules) as server:
            schedules.hold.set()
            connection = server.open(post(picture(1), b"Accept: text/event-stream"))
            assert wait_for(lambda: schedules.submitted == 1)
            server.app.add(new, CARD)
            schedules.now = new
            schedules.hold.clear()
            connection.settimeout(5)
            content = b""
            while b"event: answer" not in content or not content.endswith(b"\r\n\r\n"):
                content += connection.recv(65536)
            assert content.count(b"event: ") == 3
            assert b'"class_name":"one"' in content
            assert b'"class_name":"new' not in content

    @pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
    def test_not_through_a_proxy(self, header: str) -> None:
        called = []

        async def reload() -> None:
            called.append(1)

        with serving(reload=reload) as server:
            assert server.ask("POST", "/v1/reload", headers={header: "203.0.113.9"})[0] == 403
            assert not called

    def test_what_cannot_be_opened_is_said_and_the_old_one_is_served_on(self) -> None:
        async def reload() -> None:
            raise OfframpError("weights.safetensors is damaged.")

        with serving(reload=reload) as server:
            status, _, content = server.ask("POST", "/v1/reload")
            assert status == 422
            assert "damaged" in json.loads(content)["error"]
            assert server.predict(picture())[0] == 200
