"""The dashboard as an operator uses it, in a real browser: start a sync, follow it, look it up."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from bson import ObjectId
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from tests.browser import BLIND_POST, chromium, page_of_another_site
from tests.e2e.checkout import FailedSync, Served
from tests.integration.world import PATIENCE_SECONDS, Document, http, wait_until

pytestmark = pytest.mark.browser

SCREENSHOTS = "README_SCREENSHOTS"
STAGES = ["tenant", "client", "subtenant", "domain", "branding"]
PATIENCE_MS = PATIENCE_SECONDS * 1000
expect.set_options(timeout=PATIENCE_MS)
V2 = "/v2"
"""Where Prefect's other interface begins."""
DEPLOYMENT_PAGE = re.compile(r"/deployments/deployment/[0-9a-f-]+(\?.*)?$")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(webgl=SCREENSHOTS in os.environ) as browser:
        yield browser


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """What all pages share: the dashboard's scripts are loaded once."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, timezone_id="UTC")
    context.set_default_timeout(PATIENCE_MS)
    return context


@pytest.fixture
def page(context: BrowserContext, served: Served) -> Iterator[Page]:
    served.hub.misbehave()
    page = context.new_page()
    yield page
    page.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures go: the README's folder when a variable names it."""
    return Path(os.environ.get(SCREENSHOTS, tmp_path))


def open_form(page: Page, served: Served, interface: str = "") -> None:
    page.goto(f"{served.dashboard_url}{interface}/deployments")
    page.get_by_role("link", name="full", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text("What to sync; whatever the order here")).to_be_visible()
    expect(page.get_by_text('"full" sends every item')).to_be_visible()


def open_form_with_a_made_up_name(page: Page, served: Served) -> None:
    """Open the form; anew where it fills in a Greek letter alone, which may be a given name."""
    open_form(page, served)
    while page.locator("input[type=text]").first.input_value().isalpha():
        open_form(page, served)


def submit(page: Page) -> None:
    """Press Submit until it is taken: on SQLite the server refuses a write now and then."""
    for _ in range(5):
        page.get_by_role("button", name="Submit").click()
        with suppress(PlaywrightTimeout):
            page.wait_for_url(DEPLOYMENT_PAGE, timeout=60_000)
            return
    pytest.fail("the form was never taken")


def run_named(served: Served, name: str) -> Document:
    """Return the audit document of the run that has begun under that name."""

    def begun() -> Document | None:
        run = served.newest_run()
        return run if run["flow_run_name"] == name else None

    return wait_until(begun)


def open_run(page: Page, served: Served, run: Document) -> None:
    page.goto(f"{served.dashboard_url}/runs/flow-run/{run['flow_run_id']}")
    expect(page.get_by_text(run["flow_run_name"]).first).to_be_visible()


def artifacts_with_a_summary(served: Served, run: Document) -> list[str | None]:
    """Return the keys of a run's artifacts, once its summary is among them."""
    of_run = ArtifactFilterFlowRunId(any_=[UUID(run["flow_run_id"])])

    def keys() -> list[str | None]:
        artifacts = prefect.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run))
        found = [artifact.key for artifact in artifacts]
        return found if "summary" in found else []

    with served.prefect() as prefect:
        return wait_until(keys)


def open_tab(page: Page, name: str) -> None:
    page.locator(".p-tab", has_text=name).click()


def cell(page: Page, text: str) -> Locator:
    return page.get_by_role("cell").filter(has_text=text)


def progress(page: Page, stage: str) -> Locator:
    return page.get_by_text(re.compile(f"^{stage}: 1 of 1 items"))


def link_to_rest(page: Page, served: Served, run: Document) -> Locator:
    return page.locator(f"a[href='{served.api_url}/admin/sync/runs/{run['_id']}']")


def test_fill_the_form_run_it_and_see_what_came_of_it(
    page: Page, served: Served, screenshots: Path
) -> None:
    open_form_with_a_made_up_name(page, served)
    expect(page.locator(".p-tag")).to_have_text(STAGES)
    page.locator("textarea").last.fill("the dashboard")
    page.screenshot(path=screenshots / "form.png")
    submit(page)
    run = run_named(served, "all entities - the dashboard")
    open_run(page, served, run)
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    expect(page.get_by_text("branding: 1 of 1 items are in")).to_be_visible()

    open_tab(page, "Subflow Runs")
    for stage in STAGES:
        expect(page.get_by_role("link", name=stage, exact=True).first).to_be_visible()

    open_tab(page, "Artifacts")
    for stage in STAGES:
        expect(progress(page, stage)).to_be_visible()
    expect(page.get_by_text("success: 5 of 5 items are in")).to_be_visible()
    page.screenshot(path=screenshots / "run.png")

    page.get_by_role("link", name="summary").click()
    expect(cell(page, "subtenant")).to_be_visible()
    expect(link_to_rest(page, served, run)).to_be_visible()
    run = served.run_until_ended(_id=run["_id"])
    assert (run["status"], run["trigger"]) == ("success", "the dashboard")


def test_the_v2_interface_takes_a_name_and_a_choice_and_shows_what_came_of_it(
    page: Page, served: Served
) -> None:
    open_form(page, served, V2)
    page.get_by_label("Run Name").fill("Only the tenants")
    for stage in STAGES:
        if stage != "tenant":
            page.get_by_role("button", name=f"Remove {stage} tag", exact=True).click()
    page.get_by_role("button", name="Select mode").click()
    page.get_by_role("option", name="changed").click()
    submit(page)
    run = served.run_until_ended(_id=run_named(served, "Only the tenants")["_id"])
    assert [stage["entity_type"] for stage in run["stages"]] == ["tenant"]
    assert (run["status"], run["mode"], run["trigger"]) == ("success", "changed", "manual")
    artifacts_with_a_summary(served, run)

    page.goto(f"{served.dashboard_url}{V2}/runs/flow-run/{run['flow_run_id']}?tab=Artifacts")
    for shown in ("Only the tenants", "Completed", "mode:changed", "database:identity_backoffice"):
        expect(page.get_by_text(shown, exact=True).first).to_be_visible()
    expect(progress(page, "tenant")).to_be_visible()
    page.get_by_role("link").filter(has_text="summary").click()
    expect(cell(page, "tenant")).to_be_visible()
    expect(link_to_rest(page, served, run)).to_be_visible()


def start(served: Served) -> ObjectId:
    """Ask the REST API for a sync, and return its run_id."""
    started = http.post(f"{served.api_url}/admin/sync/run")
    assert started.status_code == 202
    return ObjectId(started.json()["run_id"])


def press(page: Page, button: str, confirm: str) -> None:
    """Press a button of a run's page, and then the one that says that it was meant."""
    page.get_by_role("button", name=button).click()
    page.locator(".p-modal").get_by_role("button", name=confirm).click()


def test_a_failure_is_looked_up_and_retry_goes_on_in_the_same_run(
    page: Page, served: Served, failed_sync: FailedSync, screenshots: Path
) -> None:
    run, request_id = failed_sync.run, failed_sync.failed_step["request_id"]
    open_run(page, served, run)
    expect(page.get_by_text("Partial", exact=True).first).to_be_visible()
    open_tab(page, "Artifacts")
    page.get_by_role("link", name="failures").click()
    for told in ("NOT_FOUND", "the client does not exist", request_id):
        expect(cell(page, told)).to_be_visible()
    page.screenshot(path=screenshots / "failures.png")

    sent_before, newest = len(served.hub.requests()), served.newest_run()["_id"]
    open_run(page, served, run)
    press(page, "Retry", confirm="Retry")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    retried = served.run_until_ended(_id=run["_id"], attempt=2)
    assert (retried["status"], served.newest_run()["_id"]) == ("success", newest)
    (sent,) = served.hub.requests()[sent_before:]
    assert sent["key"] == "pagos.semperaltius.edu.mx"
    artifacts = artifacts_with_a_summary(served, retried)
    assert "failures" not in artifacts
    assert len(artifacts) == len(set(artifacts)), "none is there for each of the attempts"


def test_cancel_ends_a_run(page: Page, served: Served) -> None:
    served.hub.misbehave({"delay_ms": 5000})
    run_id = start(served)
    wait_until(lambda: served.newest_run()["status"] == "running")
    run = served.newest_run()
    assert run["_id"] == run_id

    page.goto(f"{served.dashboard_url}/runs/flow-run/{run['flow_run_id']}")
    press(page, "Cancel", confirm="Confirm")
    expect(page.get_by_text("Cancelled", exact=True).first).to_be_visible()
    assert served.run_until_ended(_id=run["_id"])["status"] == "cancelled"


def test_a_page_of_another_site_neither_reads_nor_changes_prefect(
    browser: Browser, served: Served
) -> None:
    api_url = f"{served.dashboard_url}/api"
    with page_of_another_site(browser) as page:
        with page.expect_response("**/flows/") as refused:
            page.evaluate(BLIND_POST, [f"{api_url}/flows/", json.dumps({"name": "evil"})])
        assert refused.value.status == 403
        read = "url => fetch(url).then(() => 'read', () => 'not read')"
        assert page.evaluate(read, f"{api_url}/admin/version") == "not read"
    with served.prefect() as prefect:
        assert "evil" not in [flow.name for flow in prefect.read_flows()]
