"""The page in a real browser: every figure is drawn, nothing fails, the table sorts."""

import re
import shutil
import subprocess

import pytest

from prunus.report import figures, render_html

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
    "--dump-dom",
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

# Clicks each head twice and writes the order of the methods after each click.
SORT = """<script>
window.addEventListener("load", () => {
  const order = () => [...document.querySelectorAll("#comparison-table tbody tr")]
    .map((row) => row.cells[0].dataset.sort).join(" ");
  for (const name of ["top-1 after training", "Latency", "Method"]) {
    const head = [...document.querySelectorAll("#comparison-table thead th")]
      .find((cell) => cell.textContent === name);
    for (const click of [1, 2]) {
      head.querySelector("button").click();
      const line = document.createElement("p");
      line.textContent = `${name} ${click}: ${order()}`;
      document.body.append(line);
    }
  }
});
</script>"""


def dump(text, folder):
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    # The embedded library names the class, too: only what was drawn may count.
    return re.sub(r"<script\b.*?</script>", "", done.stdout, flags=re.DOTALL)


@pytest.fixture(scope="module")
def dom(comparison, tmp_path_factory):
    text = render_html(comparison).replace("</body>", SORT + "</body>")
    return dump(text, tmp_path_factory.mktemp("page"))


def section(dom, name):
    found = re.search(rf'<section id="{name}">.*?</section>', dom, flags=re.DOTALL)
    assert found is not None, f"the page has no section {name}"
    return found.group()


def test_every_figure_is_drawn(comparison, dom):
    for name in figures(comparison):
        assert 'class="main-svg"' in section(dom, name), name
    assert section(dom, "pareto").count('class="errorbar"') >= 3
    assert section(dom, "widths").count("refused") >= 3


def test_no_script_fails_and_no_data_can_be_sent(dom):
    assert 'class="script-error"' not in dom
    assert "Share chart" not in dom and "Download plot" in dom


@pytest.mark.parametrize(
    ("head", "rising", "falling"),
    [
        ("top-1 after training", "random geometry genetic", "genetic geometry random"),
        # geometry has no latency: last in either order
        ("Latency", "genetic random geometry", "random genetic geometry"),
        ("Method", "genetic geometry random", "random geometry genetic"),
    ],
)
def test_table_sorts_below_the_dense_row(dom, head, rising, falling):
    assert f"<p>{head} 1: dense {rising}</p>" in dom
    assert f"<p>{head} 2: dense {falling}</p>" in dom


def test_a_failing_script_says_so(comparison, tmp_path):
    text = render_html(comparison).replace('id="plot-widths"', 'id="plot-gone"')
    assert "A script of this report failed" in dump(text, tmp_path)


def test_hostile_names_run_nothing(run_of, comparison, tmp_path):
    own = "document.body.id='owned'"
    name = f'</script><script>{own}</script><img src=x onerror="{own}">'
    runs = tuple(run_of(name, seed) for seed in range(2))
    dom = dump(render_html(comparison.model_copy(update={"title": name, "runs": runs})), tmp_path)
    assert 'id="owned"' not in dom and 'class="main-svg"' in dom
