"""Invariant: no spelling of a private address in a list or a redirect leads to a connection."""

from pairmill.schemas.status import Status
from tests.addresses_spelled import spellings
from tests.integration.test_fetch import JPEG, fetch_all
from tests.integration.web import HostileWeb, redirect

REFUSALS = {Status.ADDRESS_REFUSED, Status.URL_INVALID, Status.BAD_REDIRECT, Status.DNS_ERROR}


def test_no_spelling_of_a_private_address_is_connected_to() -> None:
    with HostileWeb("127.0.0.2") as private, HostileWeb() as allowed:
        private.serve("/a.jpg", JPEG)
        authorities = [name if ":80" in name else f"{name}:{private.port}" for name in spellings("127.0.0.2").values()]
        authorities = [name.replace(":80", f":{private.port}") for name in authorities]
        urls = [f"http://{authority}/a.jpg" for authority in authorities]
        for number, url in enumerate(urls):
            allowed.send(f"/{number}", redirect(url))
        urls += [allowed.url(f"/{number}") for number in range(len(urls))]
        found = fetch_all(urls, allow_networks=["127.0.0.1/32"], timeout_s=20, nameservers=["127.0.0.1:9"])
        for url, outcome in zip(urls, found, strict=True):
            assert outcome.status in REFUSALS, (url, outcome)
        assert private.connections == 0
        assert sum(each.status is Status.ADDRESS_REFUSED for each in found) > len(found) // 2
        assert fetch_all([private.url("/a.jpg")])[0].status is Status.OK  # the server answers if its address is allowed
