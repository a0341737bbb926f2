(* What a value is, as far as state goes, and which of the unit's own types its type mentions. *)

(* Types of libraries whose values change while a program runs. *)
let known =
  [
    ("ref", "ref"); ("Stdlib.ref", "ref"); ("array", "array"); ("floatarray", "array");
    ("bytes", "bytes"); ("lazy_t", "lazy"); ("CamlinternalLazy.t", "lazy");
    ("Stdlib.Lazy.t", "lazy"); ("Stdlib.Hashtbl.t", "hashtbl"); ("Stdlib.Queue.t", "queue");
    ("Stdlib.Stack.t", "stack"); ("Stdlib.Buffer.t", "buffer"); ("Stdlib.Atomic.t", "atomic");
    ("CamlinternalAtomic.t", "atomic"); ("Stdlib.Dynarray.t", "dynarray");
    ("Stdlib.Weak.t", "weak"); ("Stdlib.Random.State.t", "random");
    ("Stdlib.Bigarray.Genarray.t", "bigarray"); ("Stdlib.Bigarray.Array0.t", "bigarray");
    ("Stdlib.Bigarray.Array1.t", "bigarray"); ("Stdlib.Bigarray.Array2.t", "bigarray");
    ("Stdlib.Bigarray.Array3.t", "bigarray"); ("Mutex.t", "lock"); ("Stdlib.Mutex.t", "lock");
    ("Condition.t", "lock"); ("Stdlib.Condition.t", "lock");
    ("Stdlib.Semaphore.Counting.t", "lock"); ("Stdlib.Semaphore.Binary.t", "lock");
    ("Semaphore.Counting.t", "lock"); ("Semaphore.Binary.t", "lock");
    ("Stdlib.in_channel", "channel"); ("Stdlib.out_channel", "channel");
    ("Lwt.t", "lwt"); ("Lwt.u", "lwt"); ("Lwt_mutex.t", "lwt"); ("Lwt_condition.t", "lwt");
    ("Lwt_stream.t", "lwt"); ("Lwt_mvar.t", "lwt"); ("Lwt_pool.t", "lwt");
  ]

(* Functors of the standard library, and what their results' type `t` is. *)
let made =
  [
    ("Stdlib.Hashtbl.Make", "hashtbl"); ("Stdlib.Hashtbl.MakeSeeded", "hashtbl");
    ("Stdlib.Weak.Make", "weak"); ("Stdlib.Ephemeron.K1.Make", "weak");
    ("Stdlib.Ephemeron.K2.Make", "weak"); ("Stdlib.Ephemeron.Kn.Make", "weak");
  ]

let is_mutable_record labels =
  List.exists (fun (l : Types.label_declaration) -> l.ld_mutable = Asttypes.Mutable) labels

let declaration owned path =
  let by_ident = function
    | Path.Pident id -> Hashtbl.find_opt owned.Owned.decls id
    | _ -> None
  in
  match by_ident path with
  | Some decl -> Some decl
  | None -> (
      match Owned.own owned path with
      | Some name when Hashtbl.mem owned.by_path name -> Hashtbl.find_opt owned.by_path name
      | _ ->
          if not (Owned.is_foreign path) then None
          else try Some (Env.find_type path Env.empty) with _ -> None)

(* The functor that made the module a path starts with. *)
let maker owned path =
  let name f = Owned.normal (Path.name (Owned.real owned f)) in
  match path with
  | Path.Pdot (Path.Papply (f, _), "t") -> Some (name f)
  | Path.Pdot (Path.Pident id, "t") ->
      Option.map name (Hashtbl.find_opt owned.Owned.functors id)
  | _ -> None

let rec of_type ?(depth = 0) owned ty =
  match Compat.desc ty with
  | Types.Tarrow _ -> "function"
  | Tobject _ -> "object"
  | Tpackage _ -> "first-class module"
  | Tpoly (ty, _) -> of_type ~depth owned ty
  | Tconstr (path, _, _) -> of_path ~depth owned (Owned.real owned path)
  | _ -> "other"

and of_path ~depth owned path =
  let foreign = if Owned.is_foreign path then Owned.normal (Path.name path) else "" in
  match List.assoc_opt foreign known with
  | Some kind -> kind
  | None -> (
      match Option.bind (maker owned path) (fun name -> List.assoc_opt name made) with
      | Some kind -> kind
      | None -> of_declaration ~depth owned (declaration owned path))

and of_declaration ~depth owned = function
  | Some { type_kind = Type_record (labels, _); _ } when is_mutable_record labels ->
      "mutable record"
  | Some { type_manifest = Some ty; type_kind; _ }
    when Compat.is_abstract type_kind && depth < 20 -> of_type ~depth:(depth + 1) owned ty
  | _ -> "other"

(* ---- Mentions: which types a type is made of. *)

(* Call `found` with each path in a type. *)
let iter_paths found ty =
  let seen = Hashtbl.create 7 in
  let rec go ty =
    let id = Compat.type_id ty in
    if not (Hashtbl.mem seen id) then begin
      Hashtbl.replace seen id ();
      (match Compat.desc ty with
      | Types.Tconstr (path, _, _) -> found path
      | Tpackage _ -> ()
      | _ -> ());
      Btype.iter_type_expr go ty
    end
  in
  go ty

(* `Hlib__Greet.t` and `Hlib.Greet.t` are one type. *)
let dotted name =
  let rec go from parts =
    match String.index_from_opt name from '_' with
    | Some at when at > 0 && at + 1 < String.length name && name.[at + 1] = '_' ->
        go_part at parts
    | Some at -> go (at + 1) parts
    | None -> parts
  and go_part at parts = go (at + 2) (at :: parts) in
  let cuts = List.rev (go 0 []) in
  let buffer = Buffer.create (String.length name) in
  let last =
    List.fold_left
      (fun from at ->
        Buffer.add_string buffer (String.sub name from (at - from));
        Buffer.add_char buffer '.';
        at + 2)
      0 cuts
  in
  Buffer.add_string buffer (String.sub name last (String.length name - last));
  Buffer.contents buffer

let is_ours name =
  not (String.starts_with ~prefix:"Stdlib" name || String.starts_with ~prefix:"Camlinternal" name)

(* The types that a unit or another one declares, by unit and path; not the library's. *)
let collect owned each =
  let names = Hashtbl.create 7 in
  let found path =
    let path = Owned.real owned path in
    match Owned.own owned path with
    | Some name when Hashtbl.mem owned.Owned.by_path name ->
        Hashtbl.replace names (dotted owned.unit_name ^ "." ^ name) ()
    | Some _ -> ()
    | None ->
        let name = Path.name path in
        if Owned.is_persistent path && is_ours name then Hashtbl.replace names (dotted name) ()
  in
  each (iter_paths found);
  List.sort compare (Hashtbl.fold (fun name () rest -> name :: rest) names [])

let mentions owned ty = collect owned (fun look -> look ty)

let look_at_arguments look = function
  | Types.Cstr_tuple tys -> List.iter look tys
  | Cstr_record labels -> List.iter (fun (l : Types.label_declaration) -> look l.ld_type) labels

let look_at_declaration look (d : Types.type_declaration) =
  Option.iter look d.type_manifest;
  match d.type_kind with
  | Type_record (labels, _) ->
      List.iter (fun (l : Types.label_declaration) -> look l.ld_type) labels
  | Type_variant (constructors, _) ->
      List.iter
        (fun (c : Types.constructor_declaration) ->
          look_at_arguments look c.cd_args;
          Option.iter look c.cd_res)
        constructors
  | _ -> ()

let look_at_constructor look (e : Types.extension_constructor) =
  look_at_arguments look e.ext_args;
  Option.iter look e.ext_ret_type

let rec look_at_module look = function
  | Types.Mty_signature items -> List.iter (look_at_item look) items
  | Mty_functor (_, result) -> look_at_module look result
  | _ -> ()

and look_at_item look = function
  | Types.Sig_value (_, d, _) -> look d.val_type
  | Sig_type (_, d, _, _) -> look_at_declaration look d
  | Sig_typext (_, e, _, _) -> look_at_constructor look e
  | Sig_module (_, _, { md_type; _ }, _, _) -> look_at_module look md_type
  | Sig_class (_, { cty_new = Some ty; _ }, _, _) -> look ty
  | _ -> ()

let declaration_mentions owned d = collect owned (fun look -> look_at_declaration look d)
let constructor_mentions owned e = collect owned (fun look -> look_at_constructor look e)

let module_mentions owned id =
  match Hashtbl.find_opt owned.Owned.module_types id with
  | Some ty -> collect owned (fun look -> look_at_module look ty)
  | None -> []

let item_mentions owned item = collect owned (fun look -> look_at_item look item)
