"""Routes: whose pipeline a recipient has."""

from __future__ import annotations

from dataclasses import replace

from sendswitch.routing import (
    ALONE,
    HERE,
    POOL,
    Route,
    Routes,
    fits_rabbitmq,
    in_rabbitmq,
    is_own,
    own_queue,
    rabbitmq_queue,
)

# routes


def test_routes() -> None:
    def route(owner: str) -> Route:
        return Route(owner, 1, 60, "pass", "bounce")

    routes = Routes([route("joe@a.example"), route("joe+x@a.example"), route("@b.example")])

    def owner(address: str) -> str | None:
        found = routes.find(address)
        return found.owner if found else None

    assert owner("JOE@A.example") == "joe@a.example"
    assert owner("joe+x@a.example") == "joe+x@a.example"
    assert owner("joe+other@a.example") == "joe@a.example"
    assert owner("anybody@b.example") == "@b.example"
    assert owner("ann@a.example") is None
    assert owner("postmaster") is None
    assert Routes().find("joe@a.example") is None


def test_a_recipient_without_a_domain_is_of_the_origin_and_of_anybody_where_none_is_known() -> None:
    routes = [Route(owner, 1, 60, "pass", "bounce") for owner in ("joe@b.example", "joe@a.example", "@a.example")]
    with_origin = Routes(routes, origin="B.example").find("joe")
    assert with_origin is not None
    assert with_origin.owner == "joe@b.example"
    without = Routes(routes).find("JOE+lists")
    assert without is not None
    assert without.owner == "joe@a.example"
    again = Routes(routes)
    assert [again.find(name) for name in ("joe", "joe+x", "ann")] == [routes[1], routes[1], None]
    assert Routes(routes, origin="c.example").find("joe") is None


def test_no_pipelines_no_route() -> None:
    assert Routes().find("a@b") is None
    assert len(Routes()) == 0


def test_routes_can_be_gone_through() -> None:
    route = Route("a@b", 1, 60, "pass", "bounce")
    assert list(Routes([route])) == [route]


def test_changed_routes_are_others_and_the_old_ones_stay() -> None:
    ann, bob, new = (Route(owner, v, 60, "pass", "bounce") for owner, v in (("Ann@b", 1), ("bob@b", 1), ("ann@b", 2)))
    old = Routes([ann, bob], delimiters="-", origin="b")
    now = old.changed({"ann@b": new}, ["bob@b", "carol@b"])
    assert list(old) == [ann, bob]
    assert list(now) == [new]
    assert (now.find("ANN-x"), now.find("bob@b"), now.of("ann@B"), now.of("ann-x@b")) == (new, None, new, None)
    assert list(Routes({"ann@b": ann})) == [ann]


def test_queues_of_users_are_none_of_the_site() -> None:
    assert own_queue("Ann@Example.test") == own_queue("ann@example.test") == "web.ann@example.test"
    assert rabbitmq_queue("Ann@Example.test") == "tasks.ann@example.test"
    assert is_own(own_queue("@example.test"))
    assert all(map(fits_rabbitmq, ("Ann@Example.test", "@example.test", "a.b_c+d-e@x-y.test", "a@bücher.example")))
    odd = (
        "o'brien@x.test",
        "a%b@x.test",
        '"a b"@x.test',
        "ä@x.test",
        "a=b@x.test",
        "a@[192.0.2.1]",
        "pool",
        "a#b@x.test",
    )
    assert not any(map(fits_rabbitmq, (*odd, "x" * 190 + "@example.test")))
    assert is_own(rabbitmq_queue("@example.test"))
    assert list(map(in_rabbitmq, (POOL, ALONE, HERE, rabbitmq_queue("a@b"), own_queue("a@b")))) == [
        *(True, True, False),
        *(True, False),
    ]
    assert not any(map(is_own, (POOL, ALONE, HERE)))


def test_a_route_says_whether_workers_of_the_site_may_be_asked() -> None:
    own = Route("a@b.test", 1, 60, "defer", "bounce", queue=own_queue("a@b.test"), when_offline="pass")
    assert own.own
    assert not own.needs_pool
    assert replace(own, when_offline="pool").needs_pool
    assert replace(own, candidate=2, candidate_queue=POOL).needs_pool
    light = replace(own, queue=HERE, candidate_queue=POOL)
    assert not light.own
    assert not light.needs_pool
    assert replace(light, queue=POOL).needs_pool
