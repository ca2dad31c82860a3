#include "parallel/watch/verdict.h"

#include "tests/support/catch.h"

using namespace moetune;

namespace {

constexpr Limits kLimits{20.0, 30.0};

/// Rank of a world of one group "ep" (identity "4.0"), in step 7, that came to `entered` collectives of it.
Witness rank(int64_t entered, double idle_s) {
  Witness witness;
  witness.state = Witness::State::kAlive;
  witness.report.host = "a";
  witness.report.process = 100 + entered;
  witness.report.place = "step 7, layer 2 on its way up";
  witness.report.patient = false;
  witness.report.idle_s = idle_s;
  witness.report.groups = {{"4.0", "ep", 3, entered}};
  return witness;
}

Witness waiting(int64_t entered, double idle_s, int64_t bytes = 4096) {
  Witness witness = rank(entered, idle_s);
  witness.report.waiting = Collective{"4.0", "all_to_all_v", entered, bytes, idle_s};
  return witness;
}

std::string text_of(const std::vector<Witness>& ranks) { return verdict(ranks, kLimits).value_or(""); }

}  // namespace

TEST_CASE("a rank that stands still while others wait for it is named with what they wait in") {
  const std::string text = text_of({waiting(9, 31), rank(8, 33), waiting(9, 32)});
  CHECK(text ==
        "rank 1 of 3 (host a, process 108) stalls: without progress for 33 s, asleep\n"
        "  rank 1 is at step 7, layer 2 on its way up\n"
        "  ranks 0 and 2 wait for it, at step 7, layer 2 on its way up, in all_to_all_v #9 of group ep (3 ranks), 4096 "
        "bytes, since 31 s");
}

TEST_CASE("a rank that gets on is waited for, however long") {
  CHECK(text_of({waiting(9, 3000), rank(8, 29), waiting(9, 3000)}).empty());
}

TEST_CASE("a rank that loads or saves is waited for, however long") {
  Witness saving = rank(8, 3000);
  saving.report.patient = true;
  CHECK(text_of({waiting(9, 3000), saving, waiting(9, 3000)}).empty());
  // Only a rank that waits for no rank has the excuse of a disk.
  Witness between_steps = waiting(9, 31);
  between_steps.report.patient = true;
  CHECK(text_of({between_steps, rank(8, 33), between_steps}).find("rank 1 of 3") == 0);
}

TEST_CASE("a rank that stands still and that nobody waits for is left alone") {
  CHECK(text_of({rank(8, 100), rank(8, 1), rank(8, 2)}).empty());
}

TEST_CASE("a late rank that itself waits passes the blame on") {
  // Rank 1 waits for rank 2 in another group, and rank 0 for rank 1.
  Witness first = waiting(9, 40), middle = rank(8, 40), last = rank(9, 40);
  middle.report.groups.push_back({"5.1", "data", 2, 6});
  middle.report.waiting = Collective{"5.1", "all_reduce_sum", 6, 64, 40};
  last.report.groups.push_back({"5.1", "data", 2, 5});
  const std::string text = text_of({first, middle, last});
  CHECK(text.find("rank 2 of 3") == 0);
  CHECK(text.find("rank 1 waits for it") != std::string::npos);
  CHECK(text.find("all_reduce_sum #6 of group data (2 ranks), 64 bytes") != std::string::npos);
  // Rank 2 gets on: nobody is to blame.
  last.report.idle_s = 1;
  CHECK(text_of({first, middle, last}).empty());
}

TEST_CASE("ranks that wait for each other") {
  Witness one = waiting(9, 31), two = rank(8, 31);
  one.report.groups.push_back({"5.0", "data", 2, 3});
  two.report.groups.push_back({"5.0", "data", 2, 4});
  two.report.waiting = Collective{"5.0", "broadcast", 4, 8, 31};
  const std::string text = text_of({one, two});
  CHECK(text.find("no rank has made progress for 30 s") == 0);
  CHECK(text.find("rank 1: at step 7, layer 2 on its way up, in broadcast #4 of group data (2 ranks), 8 bytes") !=
        std::string::npos);
  CHECK(text.find("wait for each other") != std::string::npos);
}

TEST_CASE("a collective that all came to may take as long as its bytes need") {
  // 1 GB at 10 MB/s is 100 s.
  CHECK(text_of({waiting(9, 120, 1000000000), waiting(9, 120, 1000000000)}).empty());
  CHECK(text_of({waiting(9, 131, 1000000000), waiting(9, 131, 1000000000)})
            .find("ranks 0 and 1 of 2 are in a collective that does not end: of its ranks only 0 and 1 are known") ==
        0);
  CHECK(text_of({waiting(9, 40), waiting(9, 40), waiting(9, 40)})
            .find("ranks 0, 1 and 2 of 3 are in a collective that does not end: all have come to it") == 0);
}

TEST_CASE("who sleeps in a collective that the others are busy in holds them up") {
  Witness busy = waiting(9, 40), asleep = waiting(9, 40), behind = waiting(9, 40);
  busy.report.busy_s = 39;
  const std::string text = text_of({busy, asleep, busy});
  CHECK(text.find("rank 1 of 3 (host a, process 109) stalls: without progress for 40 s, asleep") == 0);
  CHECK(text.find("in the same collective: ranks 0 and 2") != std::string::npos);
  // Another rank, which waits elsewhere for one of them, changes nothing of it.
  behind.report.waiting = Collective{"5.0", "all_reduce_sum", 2, 8, 40};
  behind.report.groups.push_back({"5.0", "data", 2, 2});
  busy.report.groups.push_back({"5.0", "data", 2, 1});
  CHECK(text_of({busy, asleep, behind}).find("rank 1 of 3") == 0);
}

TEST_CASE("who is in a collective that others are through with holds them up") {
  Witness inside = waiting(8, 40), ahead = waiting(9, 40);
  const std::string text = text_of({ahead, inside, ahead});
  CHECK(text.find("rank 1 of 3 (host a, process 108) stalls") == 0);
  CHECK(text.find("rank 1 is at step 7, layer 2 on its way up, in all_to_all_v #8 of group ep (3 ranks), 4096 bytes") !=
        std::string::npos);
  CHECK(text.find("ranks 0 and 2 wait for it") != std::string::npos);
}

TEST_CASE("a silent process, a dead one and a broken NCCL group need nobody to wait") {
  Witness silent = rank(8, 0.1);
  silent.silent_s = 21;
  CHECK(text_of({waiting(9, 5), silent}) ==
        "rank 1 of 2 (host a, process 108) silent for 21 s: the process was stopped, or its host or the way there is "
        "lost\n"
        "  rank 1 was last heard of at step 7, layer 2 on its way up\n"
        "  rank 0 waits for it, at step 7, layer 2 on its way up, in all_to_all_v #9 of group ep (3 ranks), 4096 "
        "bytes, since 5 s");
  silent.silent_s = 19;
  CHECK(text_of({waiting(9, 5), silent}).empty());
  silent.state = Witness::State::kDied;
  CHECK(text_of({waiting(9, 5), silent}).find("rank 1 of 2 (host a, process 108) died") == 0);
  Witness broken = rank(8, 1);
  broken.report.transport_error = "group ep: remote process exited";
  CHECK(text_of({broken, rank(8, 1)})
            .find("rank 0 of 2 (host a, process 108) NCCL failed: group ep: remote process exited") == 0);
}

TEST_CASE("who fails has the word, who left is not missed") {
  Witness failing = rank(8, 40);
  failing.state = Witness::State::kFailing;
  CHECK(text_of({waiting(9, 40), failing}).empty());
  Witness left = rank(9, 100), unknown;
  left.state = Witness::State::kLeft;
  left.silent_s = unknown.silent_s = 100;
  CHECK(text_of({rank(9, 1), left, unknown}).empty());
}

TEST_CASE("a report survives its line") {
  Witness sent = waiting(9, 1.5);
  sent.report.host = "h\n\"\xff";
  sent.report.transport_error = "x";
  sent.report.busy_s = 0.25;
  const std::string line = to_line(sent.report);
  CHECK(line.find('\n') == std::string::npos);
  const std::optional<RankReport> got = report_from(line);
  REQUIRE(got);
  CHECK(got->process == 109);
  CHECK(got->place == "step 7, layer 2 on its way up");
  CHECK(!got->patient);
  CHECK(got->idle_s == 1.5);
  CHECK(got->busy_s == 0.25);
  CHECK(got->transport_error == "x");
  REQUIRE(got->waiting);
  CHECK(got->waiting->number == 9);
  CHECK(got->waiting->operation == "all_to_all_v");
  REQUIRE(got->groups.size() == 1);
  CHECK(got->groups[0].entered == 9);
  CHECK(!report_from("bye"));
  CHECK(!report_from("{\"host\": 3}"));
}
