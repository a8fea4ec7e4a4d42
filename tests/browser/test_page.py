"""comparison.html in a browser without a network: Debian's chromium, headless. Run by .ci/run, outside
`make test`.

A script added to a copy of the page does what a reader would and writes down what the page then shows;
chromium prints it."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from run_logs import compare_without_picture, loss_of, write_log

READER = """<script>
const errors = [];
window.addEventListener("error", e => errors.push(e.message));
const press = name => document.querySelector(`#axes button[value=${name}]`).click();
const look = () => ({
  label: document.getElementById("x-label").textContent,
  ticks: [...document.querySelectorAll(".x-tick")].map(t => t.textContent),
  curves: Object.fromEntries([...document.querySelectorAll("path.curve")].map(p => [p.dataset.label, p.getAttribute("d")])),
  crosses: document.querySelectorAll("path.crash").length,
  pressed: [...document.querySelectorAll("#axes button[aria-pressed=true]")].map(b => b.value),
});
const at = (kind, x) => {
  const box = chart.getBoundingClientRect();
  const clientX = box.left + scale.x(x) * box.width / W, clientY = box.top + box.height / 2;
  chart.dispatchEvent(new PointerEvent(kind, {clientX, clientY}));
};
const readAt = x => {
  at("pointermove", x);
  return hover.hidden ? null : [...hover.querySelectorAll("tr")].map(tr => [...tr.cells].slice(1).map(c => c.textContent));
};
const seen = {tokens: look(), at30K: readAt(30000), at90K: readAt(90000)};
press("FLOPs"); seen.FLOPs = look(); seen.atFLOPs = readAt(2.4e13);
press("time"); seen.time = look();
press("tokens"); seen.again = look();
at("pointerdown", 40000); at("pointerup", 80000); seen.zoomed = look();
chart.dispatchEvent(new MouseEvent("dblclick")); seen.unzoomed = look();
document.querySelector("#legend input").click(); seen.hidden = look();
document.querySelector("#legend input").click();
document.getElementById("trains").click(); seen.trains = document.querySelectorAll("path.train").length;
document.getElementById("trains").click();
document.getElementById("log").click(); seen.log = look();
fetch("https://example.com/").then(() => "reached", () => "refused").then(network => {
  document.body.innerHTML = "";
  document.body.textContent = "SEEN" + JSON.stringify({...seen, errors, network}) + "SEEN";
});
</script>"""


def seen_by(page: Path, tmp_path: Path) -> dict:
    """What the reader's script saw."""
    copy = page.with_name("read.html")
    copy.write_text(page.read_text().replace("</html>", READER + "</html>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1250,1000",
               "--virtual-time-budget=5000",
               f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [*command, copy.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search("SEEN(.*)SEEN", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_log("out-<b>&a", floor=3.2, name="gpt2", started=1_700_000_001)
        write_log(
            "out-llama3", floor=3.1, name="llama3", steps=(0, 50), end=None, started=1_700_000_002, flops=7e8
        )
        write_log("out/qwen3", floor=3.0, name="qwen3", started=1_700_000_003, flops=8e8)
        assert compare_without_picture("--latest=3", "--out=cmp") == 0
        return seen_by(folder / "cmp/comparison.html", folder)


def test_three_curves_and_the_crash(seen):
    assert seen["errors"] == [] and seen["network"] == "refused"
    assert set(seen["tokens"]["curves"]) == {"out-<b>&a", "out-llama3", "out/qwen3"}
    assert seen["tokens"]["crosses"] == 1 and seen["tokens"]["label"] == "Training tokens"


def end_of(curve: str) -> float:
    return float(re.findall(r"L([\d.]+) ", curve)[-1])


def test_toggle(seen):
    """At equal tokens the complete runs end together; at equal FLOPs the cheaper one, 6 to 8, ends at three
    quarters."""
    tokens, flops, time = (seen[axis] for axis in ("tokens", "FLOPs", "time"))
    assert (tokens["pressed"], flops["pressed"], time["pressed"]) == (["tokens"], ["FLOPs"], ["time"])
    assert (
        flops["label"] == "Training compute (FLOPs)"
        and "8.00e13" in flops["ticks"]
        and "0:00:20" in time["ticks"]
    )
    left, right = 70, 1100 - 20
    assert end_of(tokens["curves"]["out-<b>&a"]) == end_of(tokens["curves"]["out/qwen3"]) == right
    assert end_of(flops["curves"]["out/qwen3"]) == right
    assert end_of(flops["curves"]["out-<b>&a"]) == pytest.approx(left + 0.75 * (right - left), abs=0.1)
    assert seen["again"] == tokens


def test_values_under_the_pointer(seen):
    def bits(floor, step):
        return loss_of(floor, step) / 0.6931471805599453 / 4

    expected = {"out/qwen3": 3.0, "out-llama3": 3.1, "out-<b>&a": 3.2}
    rows = seen["at30K"]
    assert [label for label, _ in rows] == list(expected)  # the best first
    for label, value in rows:
        assert float(value) == pytest.approx(
            (bits(expected[label], 20) + bits(expected[label], 40)) / 2, abs=2e-4
        )
    assert [label for label, _ in seen["at90K"]] == [
        "out/qwen3",
        "out-<b>&a",
    ]  # where the crashed run has no value
    assert dict(seen["atFLOPs"])["out-<b>&a"] == pytest.approx(
        f"{bits(3.2, 40):.4f}"
    )  # 2.4e13 / 6e8 = 40,000 tokens


def test_zoom_legend_and_scales(seen):
    assert seen["zoomed"]["ticks"] and all(40 <= float(t.rstrip("K")) <= 80 for t in seen["zoomed"]["ticks"])
    assert seen["unzoomed"] == seen["tokens"]
    assert set(seen["hidden"]["curves"]) == {"out-<b>&a", "out-llama3"}
    assert seen["trains"] == 3
    assert seen["log"]["curves"] != seen["tokens"]["curves"] and set(seen["log"]["curves"]) == set(
        seen["tokens"]["curves"]
    )
