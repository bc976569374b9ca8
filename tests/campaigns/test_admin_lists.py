"""The admin pages of lists, readers, subscriptions and suppressions."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from campaigns import models
from campaigns.models import (
    ImportJob,
    MailingList,
    RefusedRow,
    Subscriber,
    Subscription,
    SubscriptionEvent,
    Suppression,
)
from tests.campaigns.admin_world import HOSTILE, browser, draft, mailing_list, person

pytestmark = pytest.mark.django_db


@pytest.fixture
def chief():
    return person(name="chief", is_superuser=True)


@pytest.fixture
def client(chief):
    return browser(chief)


def page(model: str, kind: str, *args: object) -> str:
    return reverse(f"admin:campaigns_{model}_{kind}", args=args)


# ------------------------------------------------------------------------------------- lists


def test_lists_are_counted_in_one_query_however_many_there_are(
    client, django_assert_max_num_queries
):
    mailing_list("news", readers=3)
    with django_assert_max_num_queries(20) as few:
        client.get(page("mailinglist", "changelist"))
    for number in range(9):
        mailing_list(f"more{number}", readers=1)

    with django_assert_max_num_queries(len(few.captured_queries)):
        answer = client.get(page("mailinglist", "changelist"))

    assert [row.readers for row in answer.context["cl"].result_list] == [1] * 9 + [3]


def test_only_subscribed_readers_are_counted(client):
    news = mailing_list("news", readers=2)
    news.subscriptions.first().move("unsubscribed", source="test")

    answer = client.get(page("mailinglist", "changelist"))

    assert answer.context["cl"].result_list[0].readers == 1


def test_the_label_of_a_list_never_changes(client):
    news = mailing_list("news")

    client.post(
        page("mailinglist", "change", news.pk),
        {"name": "Other name", "label": "other", "description": ""},
    )

    news.refresh_from_db()
    assert (news.name, news.label) == ("Other name", "news")


def test_a_list_that_has_readers_is_not_deleted(client):
    news, empty = mailing_list("news", readers=1), mailing_list("empty")

    assert client.post(page("mailinglist", "delete", news.pk), {"post": "yes"}).status_code == 403
    client.post(page("mailinglist", "delete", empty.pk), {"post": "yes"})
    assert list(MailingList.objects.all()) == [news]


def imported(into, refused):
    """A finished import whose lines were all refused."""
    job = ImportJob.objects.create(
        mailing_list=into,
        file_name="readers.csv",
        path="/nowhere/readers.csv",
        status="finished",
        refused=refused,
    )
    RefusedRow.objects.bulk_create(
        RefusedRow(job=job, line=line, value="?", reason=f"no address in {line}")
        for line in range(refused)
    )
    return job


def test_deleting_a_list_counts_its_refused_lines_and_reads_none_of_them(client):
    news = mailing_list("news")
    imported(news, refused=3)
    imported(news, refused=4)
    draft(news)
    draft().exclude_lists.add(news)
    imported(mailing_list("other"), refused=1)
    with CaptureQueriesContext(connection) as queries:
        answer = client.get(page("mailinglist", "delete", news.pk))

        counts = {str(name): count for name, count in answer.context["model_count"]}
        assert (counts["lists"], counts["imports"], counts["refused lines"]) == (1, 2, 7)
        assert counts["campaign-mailinglist relationships"] == 2
        assert "readers.csv -&gt; News" in answer.content.decode()
        assert "no address in" not in answer.content.decode()

        client.post(page("mailinglist", "delete", news.pk), {"post": "yes"})

    of_lines = [query["sql"] for query in queries if "campaigns_refusedrow" in query["sql"]]
    assert [sql.split()[0] for sql in of_lines] == ["DELETE"]
    assert list(MailingList.objects.values_list("label", flat=True)) == ["other"]
    assert RefusedRow.objects.count() == 1


def test_a_list_is_not_deleted_under_a_running_import_or_without_the_right_to_delete_imports(
    client,
):
    news = mailing_list("news")
    job = imported(news, refused=1)
    of_lists = browser(person("view_mailinglist", "delete_mailinglist", name="of lists"))

    assert of_lists.get(page("mailinglist", "delete", news.pk)).context["perms_lacking"] == {
        "import"
    }
    of_lists.post(page("mailinglist", "delete", news.pk), {"post": "yes"})
    ImportJob.objects.filter(pk=job.pk).update(status="running")
    client.post(page("mailinglist", "delete", news.pk), {"post": "yes"})

    assert list(MailingList.objects.all()) == [news]


def test_the_button_of_a_list_leads_to_its_readers(client):
    news = mailing_list("news", readers=1)

    answer = client.get(page("mailinglist", "show_readers", news.pk), follow=True)

    assert answer.status_code == 200
    assert [row.mailing_list for row in answer.context["cl"].result_list] == [news]


# ----------------------------------------------------------------------------------- readers


def reader_form(reader: Subscriber, **changes: str) -> dict[str, str]:
    """What the browser posts when nobody has touched the page; then the changes."""
    rows = list(reader.subscriptions.order_by("pk"))
    fields = {
        "email": reader.email,
        "name": reader.name,
        "language": reader.language,
        "attributes": "{}",
        "subscriptions-TOTAL_FORMS": str(len(rows)),
        "subscriptions-INITIAL_FORMS": str(len(rows)),
    }
    for number, row in enumerate(rows):
        prefix = f"subscriptions-{number}-"
        fields |= {
            f"{prefix}id": str(row.pk),
            f"{prefix}subscriber": str(reader.pk),
            f"{prefix}mailing_list": str(row.mailing_list_id),
            f"{prefix}status": row.status,
            f"initial-{prefix}status": row.status,
        }
    return fields | changes


def test_a_new_reader_gets_a_normalised_address_and_a_recorded_subscription(client, chief):
    news = mailing_list("news")

    answer = client.post(
        page("subscriber", "add"),
        {
            "email": " Ada@EXAMPLE.org ",
            "name": "Ada",
            "language": "en",
            "attributes": '{"first_name": "Ada"}',
            "subscriptions-TOTAL_FORMS": "1",
            "subscriptions-INITIAL_FORMS": "0",
            "subscriptions-0-mailing_list": str(news.pk),
            "subscriptions-0-status": "subscribed",
            "initial-subscriptions-0-status": "subscribed",
        },
    )

    assert answer.status_code == 302, answer.context["errors"]
    reader = Subscriber.objects.get()
    assert (reader.email, reader.address_key) == ("Ada@example.org", "ada@example.org")
    event = SubscriptionEvent.objects.get(subscription__subscriber=reader)
    assert (event.from_status, event.to_status) == ("", "subscribed")
    assert (event.source, event.by) == ("admin", chief)


def test_the_same_address_in_another_spelling_is_refused(client):
    Subscriber.objects.create(email="ada@example.org")

    answer = client.post(
        page("subscriber", "add"),
        {
            "email": "ADA@example.org",
            "attributes": "{}",
            "subscriptions-TOTAL_FORMS": "0",
            "subscriptions-INITIAL_FORMS": "0",
        },
    )

    assert answer.status_code == 200
    assert answer.context["adminform"].form.errors
    assert Subscriber.objects.count() == 1


def test_a_reader_is_on_a_list_once(client):
    news = mailing_list("news", readers=1)
    reader = Subscriber.objects.get()
    twice = {
        "subscriptions-TOTAL_FORMS": "2",
        "subscriptions-1-mailing_list": str(news.pk),
        "subscriptions-1-status": "subscribed",
    }

    inline = client.post(page("subscriber", "change", reader.pk), reader_form(reader, **twice))
    alone = client.post(
        page("subscription", "add"),
        {"subscriber": reader.pk, "mailing_list": news.pk, "status": "subscribed"},
    )

    assert (inline.status_code, alone.status_code) == (200, 200)
    assert Subscription.objects.count() == 1


def test_what_a_database_refuses_within_attributes_ends_no_page(client):
    reader = Subscriber.objects.create(email="ada@example.org")
    url = page("subscriber", "change", reader.pk)
    answer = client.post(url, reader_form(reader, attributes=r'{"city": "\u0000"}'))
    assert answer.context["adminform"].form.errors["attributes"]
    odd = r'{"city": "Z\u00fcrich \ud83d\ude00 \ud83d"}'
    assert client.post(url, reader_form(reader, attributes=odd)).status_code == 302
    assert Subscriber.objects.get().attributes == {"city": "Zürich 😀 ?"}


def test_attributes_are_an_object(client):
    reader = Subscriber.objects.create(email="ada@example.org")

    answer = client.post(
        page("subscriber", "change", reader.pk), reader_form(reader, attributes="[1, 2]")
    )

    assert answer.context["adminform"].form.errors["attributes"]


def test_a_change_of_the_status_is_recorded_with_who(client, chief):
    mailing_list("news", readers=1)
    reader = Subscriber.objects.get()

    client.post(
        page("subscriber", "change", reader.pk),
        reader_form(reader, **{"subscriptions-0-status": "unsubscribed"}),
    )

    event = SubscriptionEvent.objects.get()
    assert (event.from_status, event.to_status, event.by) == ("subscribed", "unsubscribed", chief)
    assert Subscription.objects.get().status == "unsubscribed"


def test_saving_an_old_page_does_not_subscribe_a_reader_who_left_meanwhile(client):
    mailing_list("news", readers=1)
    reader = Subscriber.objects.get()
    old_page = reader_form(reader, name="Ada Lovelace")
    reader.subscriptions.get().move("unsubscribed", source="one-click unsubscribe")

    client.post(page("subscriber", "change", reader.pk), old_page)

    reader.refresh_from_db()
    assert reader.name == "Ada Lovelace"
    assert reader.subscriptions.get().status == "unsubscribed"


def test_a_status_that_changed_under_the_page_is_left_as_it_is(client):
    mailing_list("news", readers=1)
    reader = Subscriber.objects.get()
    old_page = reader_form(reader, **{"subscriptions-0-status": "pending"})
    reader.subscriptions.get().move("unsubscribed", source="one-click unsubscribe")

    answer = client.post(page("subscriber", "change", reader.pk), old_page, follow=True)

    assert reader.subscriptions.get().status == "unsubscribed"
    assert "had changed meanwhile" in answer.content.decode()


def test_the_page_of_a_reader_says_that_the_address_is_suppressed(client):
    reader = Subscriber.objects.create(email="Ada@example.org")
    Suppression.add("ada@example.org", "hard_bounce", source="bounce 7")

    text = client.get(page("subscriber", "change", reader.pk)).content.decode()

    assert "No. Suppressed since" in text
    assert "Hard bounce" in text


def test_a_reader_is_erased_with_the_subscriptions(client):
    mailing_list("news", readers=1)
    reader = Subscriber.objects.get()

    client.post(page("subscriber", "delete", reader.pk), {"post": "yes"})

    assert not Subscriber.objects.exists()
    assert not Subscription.objects.exists()


def test_readers_are_found_by_the_beginning_of_the_address_in_any_case(client):
    mailing_list("news", readers=2)
    Subscriber.objects.create(email="Zoe@example.org")

    answer = client.get(page("subscriber", "changelist"), {"q": "ZO"})

    assert [row.email for row in answer.context["cl"].result_list] == ["Zoe@example.org"]


@pytest.mark.parametrize("model", ["subscriber", "subscription", "suppression"])
def test_a_longer_list_takes_no_more_queries(client, model, django_assert_max_num_queries):
    def grow(label: str, readers: int) -> None:
        for row in mailing_list(label, readers).subscriptions.select_related("subscriber"):
            Suppression.add(row.subscriber.email, "manual", source="test")

    grow("news", 2)
    with django_assert_max_num_queries(25) as few:
        client.get(page(model, "changelist"))
    grow("more", 12)

    with django_assert_max_num_queries(len(few.captured_queries)):
        answer = client.get(page(model, "changelist"))

    assert len(answer.context["cl"].result_list) == 14


def test_the_page_of_a_reader_leads_to_what_they_got(client):
    reader = Subscriber.objects.create(email="a+b@example.org")

    answer = client.get(page("subscriber", "ask_why", reader.pk))

    assert (
        answer.headers["Location"] == reverse("admin:delivery_why") + "?address=a%2Bb%40example.org"
    )
    editor = browser(person("view_subscriber"))
    assert editor.get(page("subscriber", "ask_why", reader.pk)).status_code == 403


# ----------------------------------------------------------------------------- subscriptions


def test_a_subscription_moves_on_its_own_page_and_is_recorded(client, chief):
    mailing_list("news", readers=1)
    subscription = Subscription.objects.get()

    client.post(
        page("subscription", "change", subscription.pk),
        {"status": "unsubscribed", "initial-status": "subscribed"},
    )

    subscription.refresh_from_db()
    event = subscription.events.get()
    assert (subscription.status, event.source, event.by) == ("unsubscribed", "admin", chief)


def test_subscriptions_are_filtered_by_list_and_status(client):
    news = mailing_list("news", readers=2)
    mailing_list("other", readers=1)
    gone = news.subscriptions.first()
    gone.move("unsubscribed", source="test")

    answer = client.get(
        page("subscription", "changelist"),
        {"mailing_list__id__exact": news.pk, "status__exact": "unsubscribed"},
    )

    assert list(answer.context["cl"].result_list) == [gone]


def test_selected_readers_are_unsubscribed_each_with_a_record(client, chief):
    mailing_list("news", readers=3)
    chosen = list(Subscription.objects.values_list("pk", flat=True)[:2])

    client.post(
        page("subscription", "changelist"),
        {"action": "unsubscribe", "_selected_action": chosen},
    )

    assert Subscription.objects.filter(status="unsubscribed").count() == 2
    assert SubscriptionEvent.objects.filter(by=chief, to_status="unsubscribed").count() == 2


def test_all_of_a_long_list_are_unsubscribed_page_by_page(client, chief, monkeypatch):
    monkeypatch.setattr(models, "MOVED_AT_ONCE", 2)
    mailing_list("news", readers=5)
    first, *others = Subscription.objects.order_by("pk")
    first.move("unsubscribed", source="before")
    mailing_list("other", readers=1)

    with CaptureQueriesContext(connection) as queries:
        answer = unsubscribe_all(client, "news")

    assert "4 readers unsubscribed." in answer.content.decode()
    assert Subscription.objects.filter(mailing_list__label="other", status="subscribed").exists()
    events = SubscriptionEvent.objects.filter(source="admin", by=chief).order_by("subscription")
    assert list(events.values_list("subscription", "from_status", "to_status")) == [
        (subscription.pk, "subscribed", "unsubscribed") for subscription in others
    ]
    moves = [query for query in queries if query["sql"].startswith("UPDATE")]
    assert len([query for query in moves if "campaigns_subscription" in query["sql"]]) == 3


def test_unsubscribing_that_is_cut_short_has_done_whole_pages(client, monkeypatch):
    monkeypatch.setattr(models, "MOVED_AT_ONCE", 2)
    mailing_list("news", readers=5)
    write, pages = SubscriptionEvent.objects.bulk_create, []

    def write_one_page(events):
        pages.append(write(events))
        if len(pages) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SubscriptionEvent.objects, "bulk_create", write_one_page)
        with pytest.raises(KeyboardInterrupt):
            unsubscribe_all(client, "news")

    assert Subscription.objects.filter(status="unsubscribed").count() == 2
    assert SubscriptionEvent.objects.count() == 2
    unsubscribe_all(client, "news")
    assert Subscription.objects.filter(status="unsubscribed").count() == 5
    assert SubscriptionEvent.objects.count() == 5


def unsubscribe_all(client, label):
    """ "Select all" on the subscriptions of a list, and the action."""
    shown = MailingList.objects.get(label=label)
    return client.post(
        f"{page('subscription', 'changelist')}?mailing_list__id__exact={shown.pk}",
        {
            "action": "unsubscribe",
            "select_across": "1",
            "_selected_action": shown.subscriptions.values_list("pk", flat=True)[:1],
        },
        follow=True,
    )


@pytest.mark.postgresql  # SQLite locks no single row
@pytest.mark.django_db(transaction=True)
def test_a_subscription_that_somebody_holds_keeps_no_other_waiting():
    mailing_list("news", readers=3)
    first, held, last = Subscription.objects.order_by("pk")
    is_held = threading.Event()

    def hold_until_the_others_are_moved():
        try:
            with transaction.atomic():
                Subscription.objects.select_for_update().get(pk=held.pk)
                is_held.set()
                ends = time.monotonic() + 10
                moved = Subscription.objects.filter(status="unsubscribed")
                while moved.count() < 2 and time.monotonic() < ends:
                    time.sleep(0.01)
                return set(moved.values_list("pk", flat=True))
        finally:
            connection.close()

    with ThreadPoolExecutor() as pool:
        seen = pool.submit(hold_until_the_others_are_moved)
        assert is_held.wait(10)
        everybody = Subscription.objects.all()
        assert Subscription.move_all(everybody, "unsubscribed", source="test") == 3
        assert seen.result() == {first.pk, last.pk}
    assert set(everybody.values_list("status", flat=True)) == {"unsubscribed"}


def test_a_subscription_is_never_deleted_alone(client):
    mailing_list("news", readers=1)
    subscription = Subscription.objects.get()

    answer = client.post(page("subscription", "delete", subscription.pk), {"post": "yes"})

    assert answer.status_code == 403
    assert Subscription.objects.exists()


# ------------------------------------------------------------------------------ suppressions


def test_an_address_is_suppressed_by_hand(client, chief):
    answer = client.post(
        page("suppression", "add"), {"address_key": "Ada@EXAMPLE.org", "evidence": "She called."}
    )

    assert answer.status_code == 302
    suppression = Suppression.objects.get()
    assert suppression.address_key == "ada@example.org"
    assert (suppression.reason, suppression.created_by) == ("manual", chief)
    assert suppression.evidence == "She called."


def test_what_is_suppressed_already_is_not_suppressed_twice(client):
    Suppression.add("ada@example.org", "complaint", source="a complaint")

    answer = client.post(page("suppression", "add"), {"address_key": "ADA@example.org"})

    assert "suppressed already" in answer.content.decode()
    assert Suppression.objects.get().reason == "complaint"


def test_lifting_by_the_button_needs_the_permission_and_a_post(client):
    Suppression.add("ada@example.org", "manual", source="test")
    suppression = Suppression.objects.get()
    lift = page("suppression", "lift", suppression.pk)
    without = browser(person("view_suppression", "change_suppression", name="without"))
    keeper = person("view_suppression", "lift_suppression", name="keeper")

    assert without.post(lift, {"_form_submitted": "True"}).status_code == 403
    browser(keeper).get(lift)
    assert Suppression.in_force().exists()

    browser(keeper).post(lift, {"_form_submitted": "True"})

    suppression.refresh_from_db()
    assert suppression.lifted_at is not None
    assert suppression.lifted_by == keeper


def test_lifting_several_needs_the_permission(client):
    Suppression.add("ada@example.org", "manual", source="test")
    lifting = {
        "action": "lift_selected",
        "_selected_action": [Suppression.objects.get().pk],
    }
    without = browser(person("view_suppression", "change_suppression", name="without"))

    without.post(page("suppression", "changelist"), lifting)
    assert Suppression.in_force().exists()
    client.post(page("suppression", "changelist"), lifting)
    assert not Suppression.in_force().exists()


def test_each_of_many_that_are_lifted_is_noted_once(client, chief, monkeypatch):
    monkeypatch.setattr(models, "MOVED_AT_ONCE", 2)
    for n in range(5):
        Suppression.add(f"reader{n}@example.org", "manual", source="test")
    already = Suppression.objects.earliest("pk")
    already.lift(now=timezone.now())
    chosen = list(Suppression.objects.values_list("pk", flat=True))

    url = page("suppression", "changelist")
    answer = client.post(url, {"action": "lift_selected", "_selected_action": chosen}, follow=True)

    assert "4 suppressions lifted." in answer.content.decode()
    assert not Suppression.in_force().exists()
    noted = LogEntry.objects.filter(change_message="Lifted.").values_list("object_id", flat=True)
    assert sorted(map(int, noted)) == sorted(set(chosen) - {already.pk})


def test_a_lifted_suppression_is_still_shown_as_lifted_and_by_whom(client, chief):
    Suppression.add("ada@example.org", "manual", source="test")
    Suppression.objects.get().lift(now=timezone.now(), by=chief)

    text = client.get(page("suppression", "changelist")).content.decode()

    assert "ada@example.org" in text
    assert "Lifted" in text
    assert "chief" in text


@pytest.mark.postgresql
@pytest.mark.parametrize("model", [Subscriber, Suppression])
def test_the_beginning_of_an_address_is_found_by_an_index_in_every_locale(model):
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    plan = model.objects.filter(address_key__startswith="ada@").order_by().explain()
    assert "~>=~" in plan  # compared octet by octet: ">=" would be the locale's order


def test_a_suppression_is_neither_rewritten_nor_deleted(client):
    Suppression.add("ada@example.org", "manual", source="test")
    suppression = Suppression.objects.get()

    change = client.post(
        page("suppression", "change", suppression.pk), {"address_key": "other@example.org"}
    )
    delete = client.post(page("suppression", "delete", suppression.pk), {"post": "yes"})

    assert (change.status_code, delete.status_code) == (403, 403)
    assert Suppression.objects.get().address_key == "ada@example.org"


# ----------------------------------------------------------------------------- hostile names


def test_hostile_names_are_text_on_every_page(client):
    news = MailingList.objects.create(name=HOSTILE, label="news", description=HOSTILE)
    reader = Subscriber.objects.create(
        email="evil@example.org", name=HOSTILE, attributes={"first_name": HOSTILE}
    )
    subscription = Subscription.objects.create(subscriber=reader, mailing_list=news, source=HOSTILE)
    subscription.move("unsubscribed", source=HOSTILE, note=HOSTILE)
    Suppression.add("evil@example.org", "manual", source=HOSTILE, evidence=HOSTILE)
    pages = [
        reverse("admin:index"),
        page("mailinglist", "changelist"),
        page("mailinglist", "change", news.pk),
        page("subscriber", "changelist"),
        page("subscriber", "change", reader.pk),
        page("subscription", "changelist"),
        page("subscription", "change", subscription.pk),
        page("suppression", "changelist"),
        page("suppression", "change", Suppression.objects.get().pk),
    ]

    for address in pages:
        answer = client.get(address)
        assert answer.status_code == 200, address
        assert "<script>alert(1)" not in answer.content.decode(), address
        assert "<img src=x" not in answer.content.decode(), address
