"""What programs say of a failure in other languages: the system's messages, and plain words."""

from __future__ import annotations

# The texts of frequent error numbers and of a segmentation fault in glibc's catalogs, of the latter
# and of a missing command in bash's and coreutils', and Windows' of a denied access. Older texts of
# the same catalogs are beside the new ones.
_SYSTEM = (
    # German.
    "Datei oder Verzeichnis nicht gefunden|Keine Berechtigung|Die Operation ist nicht erlaubt"
    "|Eingabe-/Ausgabefehler|Auf dem Gerät ist kein Speicherplatz mehr verfügbar"
    "|Nicht genügend Hauptspeicher verfügbar|Verbindungsaufbau abgelehnt"
    "|Die Wartezeit für die Verbindung ist abgelaufen|Ist k?ein Verzeichnis"
    "|Die Datei existiert bereits|Das Argument ist ungültig|Das Dateisystem ist nur lesbar"
    "|Datenübergabe unterbrochen \\(broken pipe\\)|Zu viele offene Dateien"
    "|Das Gerät oder die Ressource ist belegt"
    "|Die Verbindung wurde vom Kommunikationspartner zurückgesetzt|Keine Route zum Zielrechner"
    "|Die Adresse wird bereits verwendet|Das Netzwerk ist nicht erreichbar"
    "|Speicherzugriffsfehler|Adressierungsfehler|Segmentierungsverletzung"
    "|Kommando nicht gefunden|Zugriff verweigert",
    # French.
    "Aucun fichier ou (?:dossier|répertoire) de ce (?:type|nom)|Permission non accordée"
    "|Opération non permise|Erreur d['’]entrée/sortie"
    "|Aucun espace disponible sur le périphérique|Ne peut allouer de la mémoire|Connexion refusée"
    "|Connexion terminée par expiration du délai d['’]attente"
    "|(?:Est|N['’]est pas) un (?:dossier|répertoire)|Le fichier existe|Argument invalide"
    "|Système de fichiers accessible en lecture seulement|Relais brisé \\(pipe\\)"
    "|Trop de fichiers ouverts|Périphérique ou ressource occupé"
    "|Connexion ré-initialisée par le correspondant"
    "|Aucun chemin d['’]accès pour atteindre l['’]hôte cible|Adresse déjà utilisée"
    "|Le réseau n['’]est pas accessible|Erreur de segmentation|commande introuvable|Accès refusé",
    # Spanish.
    "No existe el (?:archivo|fichero) o el directorio|Permiso denegado|Operación no permitida"
    "|Error de entrada/salida|No queda espacio en el dispositivo|No se pudo asignar memoria"
    "|Conexión rehusada|Expiró el tiempo de conexión|(?:No )?es un directorio"
    "|El (?:archivo|fichero) ya existe|Argumento inválido"
    "|Sistema de (?:archivos|ficheros) de s[óo]lo lectura|Tubería rota"
    "|Demasiados (?:archivos|ficheros) abiertos|Dispositivo o recurso ocupado"
    "|Conexión reinicializada por la máquina remota|No existe ninguna ruta hasta el [`'‘]host['’]"
    "|La dirección ya se está usando|La red es inaccesible|Violación de segmento"
    "|Fallo de segmentación|orden no encontrada|Acceso denegado",
    # Portuguese, of Brazil and of Portugal.
    "Arquivo ou diretório inexistente|Ficheiro ou (?:pasta|directório) inexistente"
    "|Permissão (?:negada|recusada)|Operação não permitida|Erro de entrada/saída"
    "|Não há espaço disponível no dispositivo|Sem espaço livre no dispositivo"
    "|Não foi possível alocar memória|Impossível alocar memória|(?:Conexão|Ligação) recusada"
    "|Tempo esgotado para conexão|Ligação expirada|(?:Não )?É (?:um diretório|pasta)"
    "|(?:Arquivo|O ficheiro) existe|Argumento inválido"
    "|Sistema de (?:arquivos somente para|ficheiros só de) leitura|(?:Pipe|Túnel) quebrado"
    "|Muitos arquivos abertos|Demasiados ficheiros abertos"
    "|Dispositivo ou recurso (?:está )?ocupado|Conexão fechada pela outra ponta"
    "|Ligação reposta pelo peer|Não há rota para o host|Sem caminho para o anfitrião"
    "|Endereço já em uso|A rede está fora de alcance|Rede inacessível"
    "|Fal(?:ha|ta) de segmentação|comando não encontrado|Acesso negado",
    # Russian.
    "Нет такого файла или каталога|Отказано в доступе|Операция не позволена|Ошибка ввода/вывода"
    "|На устройстве не осталось свободного места|(?:Не удалось|Невозможно) выделить память"
    "|В соединении отказано|Время ожидания соединения истекло|Это (?:не )?каталог"
    "|Файл существует|Недопустимый аргумент|Файловая система доступна только для чтения"
    "|Обрыв канала|Слишком много открытых файлов|Устройство или ресурс занято"
    "|Соединение разорвано другой стороной|Нет маршрута до узла|Адрес уже используется"
    "|Сеть недоступна|Ошибка сегмент(?:ирования|ации)|Нарушение сегментирования"
    "|команда не найдена",
    # Chinese.
    "没有那个文件或目录|权限不够|不允许的操作|输入/输出错误|设备上没有空间|无法分配内存|拒绝连接"
    "|连接被拒绝|连接超时|是一个目录|不是目录|文件已存在|无效的参数|只读文件系统|断开的管道"
    "|打开的文件过多|设备或资源忙|连接被对方重[设置]|没有到主机的路由|地址已在使用|网络不可达|段错误"
    "|未找到命令|拒绝访问",
    # Japanese.
    "そのようなファイルやディレクトリはありません|許可がありません|許可されていない操作です"
    "|入力/出力エラーです|デバイスに空き領域がありません|メモリを確保できません"
    "|接続を拒否されました|接続がタイムアウトしました|ディレクトリで(?:す|はありません)"
    "|ファイルが存在します|無効な引数です|読み込み専用ファイルシステムです"
    "|ファイルを開きすぎです|デバイスもしくはリソースがビジー状態です"
    "|接続が相手からリセットされました|ホストへの経路がありません|アドレスは既に使用中です"
    "|ネットワークに届きません|セグメンテーションフォルト|コマンドが見つかりません"
    "|アクセスが拒否されました",
)
SYSTEM_MESSAGES = f"(?:{'|'.join(_SYSTEM)})"
# Words that say that nothing of the kind was, or a number of it.
_NONE = (
    r"(?!.{0,160}(?:\b(?:kein\w{0,2}|nichts|ohne|aucune?|sans|ning[uú]n\w{0,2}|sin|nenhuma?|sem|нет|без)\b"
    r"|没有|なし|\d))"
)
# A whole sentence of a program that says that it failed.
FAILED = (
    rf"{_NONE}(?:.{{1,120}}\b(?:fehlgeschlagen|gescheitert|nicht gefunden|nicht möglich|verweigert)"
    r"|.{1,120}\bkann nicht \w{1,30} werden"
    r"|(?:.{1,120}\b)?konnten? (?:.{1,120} )?nicht \w{1,30}(?: werden)?"
    r"|.{1,120}\ba échoué|.{1,120}\bintrouvable|échec d[eu'’].{1,120}|impossible d[e'’].{1,120}"
    r"|no se (?:pudo|puede) .{1,120}|fallo al .{1,120}|.{1,120}\bfalló"
    r"|(?:não foi possível|impossível|falha ao) .{1,120}|.{1,120}\bfalhou"
    r"|не удалось .{1,120}|не могу .{1,120}|невозможно .{1,120}|.{1,120}\bне найден[ао]?"
    r"|(?:无法|找不到).{1,80}|.{1,80}失败"
    r"|.{1,80}(?:に失敗しました|が見つかりません|(?:でき|開け)ません(?:でした)?))[.!。]?$"
)
