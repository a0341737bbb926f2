"""Real servers, processes and threads: nothing fails while the request path is reloaded."""

from pathlib import Path

from tests.support.servers import Loader, Probe, memcached, nginx, probes_of_all_workers

RELOADS = 20


def test_nginx_with_four_workers_answers_every_request_through_reloads(tmp_path: Path) -> None:
    with nginx(tmp_path) as server, server.client() as client:
        load = Loader(server)
        try:
            first = server.reload(client, 1)
            assert first["outcome"] == "live", first["error"]
            assert len(server.target(client)["processes"]) == 5
            with probes_of_all_workers(server, 4) as probes:
                for number in range(2, RELOADS + 1):
                    answer = server.reload(client, number)
                    assert answer["outcome"] == "live", answer["error"]
                    seen = {probe.version_of_nginx() for probe in probes}
                    assert {version for version, _ in seen} == {number}
                    assert len(seen) == 4
            counted = load.end()
        finally:
            load.kill()
    assert (counted.errors, counted.requests > 100) == (0, True)


def test_memcached_loses_no_key_and_fails_no_request_through_reloads(tmp_path: Path) -> None:
    with memcached(tmp_path) as server, server.client() as client:
        load, probes = Loader(server), [Probe(server) for _ in range(4)]
        try:
            for number in range(1, RELOADS + 1):
                answer = server.reload(client, number)
                assert answer["outcome"] == "live", answer["error"]
                assert [probe.version_of_memcached() for probe in probes] == [number] * 4
            counted = load.end()
        finally:
            load.kill()
            for probe in probes:
                probe.close()
    assert (counted.errors, counted.lost, counted.requests > 100) == (0, 0, True)
