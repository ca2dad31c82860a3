#include "trainer/data/dataset.h"

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/log.h"
#include "parallel/base/program_files.h"
#include "parallel/base/python_call.h"
#include "parallel/base/sha256.h"
#include "parallel/base/text.h"
#include "trainer/data/data_files.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kMostReadDirectly = std::uintmax_t{64} << 20;
constexpr size_t kFilesAtATime = 256;
// What a walk over all documents keeps of mapped files at a time.
constexpr int64_t kWalkTokens = int64_t{8} << 20;

void require_exact(const Documents& documents, const Blueprint& model, const Recipe& recipe, const std::string& place) {
  const int64_t longest = model.longest_document;
  if (longest == 0 || recipe.data.max_tokens <= longest) return;
  for (int64_t i = 0; i < documents.size(); ++i) {
    if (documents.length(i) <= longest) continue;
    throw UserError(str(place, ": document ", i + 1, " has ", documents.length(i), " tokens; beyond ", longest,
                        " this model (", model.model_type,
                        ") attends to the tokens that its indexer keeps (index_topk), which is not computed. Shorten "
                        "such documents, or set data.max_tokens to ",
                        longest));
  }
}

}  // namespace

PreparationTools PreparationTools::from_environment() {
  const ProgramFiles files = program_files();
  return {chosen_python(files), files.prepare.string()};
}

namespace {

/// JSON text, also of a recipe's text that is not UTF-8.
std::string written(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// The options of scripts/prepare that the recipe's section `data` gives. What text of special tokens becomes is said
/// only where the recipe says it: silence has a stricter meaning there.
std::vector<std::string> options_of(const Recipe& recipe) {
  const DataRecipe& data = recipe.data;
  std::vector<std::string> options = {"--train-on", to_string(data.train_on), "--thoughts", to_string(data.thoughts),
                                      "--add-bos",  to_string(data.add_bos)};
  if (recipe.origins.count("data.special_tokens_in_content") > 0 ||
      data.special_tokens_in_content != SpecialTokens::kAsText) {
    options.insert(options.end(), {"--special-tokens", to_string(data.special_tokens_in_content)});
  }
  if (!data.chat_template_kwargs.empty()) {
    nlohmann::json variables = nlohmann::json::object();
    for (const auto& [name, value] : data.chat_template_kwargs) {
      std::visit([&, key = name](const auto& inner) { variables[key] = inner; }, value);
    }
    options.insert(options.end(), {"--chat-template-kwargs", written(variables)});
  }
  if (!data.ignore_keys.empty()) {
    options.insert(options.end(), {"--ignore-keys", written(data.ignore_keys)});
  }
  return options;
}

std::string cache_folder(const Recipe& recipe, const std::string& path) {
  return recipe.data.cache ? fs::absolute(*recipe.data.cache).string()
                           : (fs::absolute(path).parent_path() / ".moetune").string();
}

/// Whether every rank reads the file itself: it holds tokens, and so few that all ranks may hold them.
bool is_read_directly(const std::string& path) {
  return fs::file_size(path) <= kMostReadDirectly && Documents::is_tokenised_jsonl(path);
}

/// MessagePack, which takes paths of any bytes, of the files: [{"path", "weight", "cache": "" for those that ranks read
/// themselves}].
std::string prepared(const Recipe& recipe, const std::string& key, const DataFiles& files,
                     const PreparationTools& tools) {
  const DataSelection selection = select_files(recipe, key, files);
  for (const std::string& note : selection.notes) log_info(note);
  std::vector<std::string> to_prepare;
  std::vector<bool> direct;
  for (const DataFile& file : selection.files) {
    direct.push_back(is_read_directly(file.path));
    if (!direct.back()) to_prepare.push_back(file.path);
  }
  const std::vector<std::string> caches = prepare_tokens(recipe, to_prepare, 0, tools);
  nlohmann::json list = nlohmann::json::array();
  size_t next = 0;
  for (size_t i = 0; i < selection.files.size(); ++i) {
    const DataFile& file = selection.files[i];
    list.push_back({{"path", file.path}, {"weight", file.weight}, {"cache", direct[i] ? "" : caches[next++]}});
  }
  std::string bytes;
  nlohmann::json::to_msgpack(list, bytes);
  return bytes;
}

}  // namespace

std::vector<std::string> prepare_tokens(const Recipe& recipe, const std::vector<std::string>& paths, int64_t show,
                                        const PreparationTools& tools) {
  std::vector<std::string> caches;
  // Neighbours with one cache folder share a process: the tokenizer is read once. What the system lets a command line
  // hold bounds their number.
  for (size_t begin = 0; begin < paths.size();) {
    const std::string cache = cache_folder(recipe, paths[begin]);
    size_t end = begin + 1;
    while (end < paths.size() && end - begin < kFilesAtATime && cache_folder(recipe, paths[end]) == cache) ++end;
    std::vector<std::string> arguments{tools.python, tools.script};
    arguments.insert(arguments.end(), paths.begin() + begin, paths.begin() + end);
    arguments.insert(arguments.end(), {"--model", recipe.model.path, "--cache", cache});
    for (std::string& option : options_of(recipe)) arguments.push_back(std::move(option));
    if (show > 0) arguments.insert(arguments.end(), {"--show", std::to_string(show)});
    const std::string output = python_output(arguments, "preparing the data");
    const size_t last = output.find_last_not_of('\n');
    const size_t line = last == std::string::npos ? 0 : output.rfind('\n', last) + 1;
    auto result = nlohmann::json::parse(output.substr(line), nullptr, false);
    if (result.is_object() && result.contains("cache")) result = {{"files", {result}}};
    MT_CHECK(result.is_object() && result.contains("files") && result["files"].size() == end - begin,
             "preparation wrote: ", output);
    if (line > 0) log_info(output.substr(0, line - 1));
    for (const auto& file : result["files"]) {
      const auto said = file.at("cache").get<std::string>();
      // Bytes of the folder's name that are no text were lost in JSON.
      const bool lossy = said.find("\xef\xbf\xbd") != std::string::npos;
      caches.push_back(lossy ? (fs::path(cache) / fs::path(said).filename()).string() : said);
      show -= std::min(show, file.value("documents", int64_t{0}));
    }
    begin = end;
  }
  return caches;
}

Documents load_documents(const Recipe& recipe, const std::string& key, const DataFiles& files, const Blueprint& model,
                         Launch& launch, const PreparationTools& tools) {
  const auto list = nlohmann::json::from_msgpack(
      launch.broadcast_string(launch.rank() == 0 ? prepared(recipe, key, files, tools) : ""));
  std::vector<Documents> parts;
  std::vector<double> weights;
  std::string faults;
  for (const auto& file : list) {
    const auto path = file.at("path").get<std::string>(), cache = file.at("cache").get<std::string>();
    try {
      parts.push_back(cache.empty() ? Documents::from_jsonl(path, model.vocab, recipe.data.ignore_keys)
                                    : Documents::from_cache(cache, model.vocab, path));
      weights.push_back(file.at("weight").get<double>());
    } catch (const UserError& error) {
      faults += str(faults.empty() ? "" : "\n", error.what());
    }
  }
  if (!faults.empty()) throw UserError(faults);
  const std::string name = list.size() == 1 ? list[0].at("path").get<std::string>() : key;
  Documents documents = Documents::joined(name, std::move(parts), weights);
  const int64_t cut = documents.truncate(recipe.data.max_tokens);
  if (cut > 0) {
    log_info(str(name, ": ", cut, " of ", documents.size(), " documents are longer than data.max_tokens ",
                 recipe.data.max_tokens, " and were cut to it"));
  }
  require_exact(documents, model, recipe, key.empty() ? name : str(recipe.origin(key), ": ", key));
  return documents;
}

BatchOptions batch_options(const Recipe& recipe) {
  return {static_cast<uint64_t>(recipe.run.seed),
          recipe.train.batch,
          recipe.data.max_tokens,
          recipe.data.packing,
          recipe.data.shuffle,
          recipe.train.epochs.value_or(0)};
}

std::string data_digest(const Documents& documents) {
  Sha256 digest;
  int64_t walked = 0;
  for (int64_t i = 0; i < documents.size(); ++i) {
    const Document document = documents.doc(i);
    const int64_t length = documents.length(i);
    digest.update(&length, sizeof length);
    digest.update(document.tokens.data(), document.tokens.size_bytes());
    digest.update(document.labels.data(), document.labels.size_bytes());
    bool plain = true;
    for (size_t t = 0; t < document.weights.size(); ++t) {
      plain = plain && (document.labels[t] == kNotTrained || document.weights[t] == 1.0F);
    }
    if (!plain) digest.update(document.weights.data(), document.weights.size_bytes());
    walked += length;
    if (walked < kWalkTokens) continue;
    documents.let_go();
    walked = 0;
  }
  documents.let_go();
  for (const Share& share : documents.shares()) {
    if (share.weight != 1.0) digest.update(&share, sizeof share);
  }
  return digest.hex();
}

}  // namespace moetune
