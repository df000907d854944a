"""What programs say of a failure in other languages: sentences, and words for what is counted.

The languages are those of messages.tsv; the words are those of the catalogs of GNU's programs, git
and apt, and of MSBuild for its summary.
"""

from __future__ import annotations

# Words that say that nothing of the kind was, or a number of it.
_NONE = (
    r"(?!.{0,160}(?:\b(?:kein\w{0,2}|nichts|ohne|aucune?|sans|ning[uú]n\w{0,2}|sin|nenhuma?|sem|нет|без"
    r"|nessun\w?|senza|żad\w{1,4}|bez|geen|zonder|ingen|utan|uden|uten)\b|没有|沒有|なし|없)"
    r"|.{0,160}\d)"
)
# A whole sentence of a program that says that it failed.
FAILED = (
    rf"{_NONE}(?:.{{1,120}}\b(?:fehlgeschlagen|gescheitert|nicht gefunden|nicht möglich|verweigert)"
    r"|.{1,120}\bkann nicht \w{1,30} werden"
    r"|(?:.{1,120}\b)?konnten? (?:.{1,120} )?nicht \w{1,30}(?: werden)?"
    r"|.{1,120}\ba échoué|.{1,120}\bintrouvable|échec d[eu'’].{1,120}|impossible d[e'’].{1,120}"
    r"|no se (?:pudo|puede) .{1,120}|fallo al .{1,120}|.{1,120}\bfalló"
    r"|(?:não foi possível|impossível|falha ao) .{1,120}|.{1,120}\bfalhou"
    r"|(?:impossibile) .{1,120}|.{1,120}\b(?:fallit[oaie]|non riuscit[oaie]|non trovat[oaie])"
    r"|(?:не удалось|не могу|невозможно) .{1,120}|.{1,120}\bне (?:найден[ао]?|удал\w{2,3})"
    r"|(?:не вдалося|неможливо) .{1,120}|.{1,120}\bне (?:знайдено|вдал\w{2,4})"
    r"|(?:nie udało się|nie można) .{1,120}|.{1,120}\b(?:nie powiod\w{2,3} się|nie znaleziono)"
    r"|nelze .{1,120}|.{1,120}\b(?:selhal[aoy]?|se (?:nezdařil|nepodařil)[aoy]?|nenalezen[ay]?)"
    r"|.{1,120}\b(?:mislukt|niet gevonden|misslyckades|hittades inte|mislykkedes|ikke fundet"
    r"|mislyktes|feilet|epäonnistui|ei löydy|sikertelen|başarısız(?: oldu)?|bulunamadı|thất bại"
    r"|απέτυχε)"
    r"|(?:无法|找不到|無法).{1,80}|.{1,80}(?:失败|失敗)(?:了)?"
    r"|.{1,80}(?:に失敗しました|が見つかりません|(?:でき|開け)ません(?:でした)?)"
    r"|.{1,80}(?:실패(?:했습니다|하였습니다)?|하지 못했습니다|찾을 수 없습니다))[.!。]?$"
)
# A sentence without the name of a program, in words that say nothing else.
FAILED_ALONE = (
    rf"{_NONE}(?:.{{1,60}}?(?:fehlgeschlagen|gescheitert|a échoué|falló|falhou|fallit[oaie]"
    r"|non riuscit[oaie]|не удал(?:ся|ась|ось|ись)|не вдал(?:ося|ася|ися|вся)"
    r"|nie powiod(?:ło|ła|ły|ł) się|selhal[aoy]?|se nezdařil[aoy]?|mislukt|misslyckades|mislykkedes"
    r"|mislyktes|epäonnistui|başarısız(?: oldu)?|thất bại|απέτυχε|失败|失敗|に失敗しました"
    r"|실패(?:했습니다|하였습니다)?|하지 못했습니다)"
    r"|(?:échec d[eu'’]|impossible d[e'’]|no se pudo|não foi possível|falha ao|impossibile"
    r"|не удалось|не вдалося|nie udało się|无法|無法).{1,60})[.!。]?$"
)
# What is counted: errors and failures.
_ERRORS = (
    "fehler|fehlgeschlagen|fehlschläge|gescheitert|erreurs?|échecs?|(?:a |ont )?échouée?s?"
    "|error(?:es)?|fallos?|fallid[oa]s?|error[ei]|fallit[oaie]|non riuscit[oaie]|erros?|falhas?"
    "|falharam|falhou|ошиб(?:ка|ки|ок)|сбо(?:й|я|ев)|неудачно|провалено|помил(?:ка|ки|ок)|błąd|błędy|błędów"
    "|nieudan[aey]|niepowodze(?:nie|nia|ń)|chyb[ay]?|selhalo|fout(?:en)?|mislukt|fejl|mislykkedes"
    "|feil|mislyktes|fel|misslyckades|virhe(?:ttä|itä)?|hib[aá]k?|hata|başarısız"
    "|σφάλμα(?:τα)?|lỗi|thất bại"
)
# Those that say of the noun beside them that it failed: `Tests échoués: 2`.
_FAILED = (
    r"(?:fehlgeschlagen(?:e[nr]?)?|nicht bestanden|échouée?s?|fall[ai]d[oa]s?"
    r"|fallit[oaie]|non superat[oaie]|falhad[oa]s?|falharam|reprovad[oa]s?|com falha|провален[аоы]"
    r"|не (?:пройден[аоы]|прошл[аио])|неудачн\w{1,3}|невдал\w{1,3}|nieudan[aey]|niezaliczon[aey]"
    r"|neúspěšn\w{1,3}|selhal[aoy]?|neprošl[aoy]|mislukte?|gefaald|misslyckade[s]?|underkän[dt]a?"
    r"|mislykkede[s]?|mislyktes|epäonnistui|hylätty|sikertelen|başarısız|thất bại|không đạt)"
)
_ERRORS_OF_CJK = (
    "(?:测试|用例|构建|检查|測試|テスト|테스트)?(?:错误|錯誤|失败|失敗|未通过|未通過|不通过|不合格"
    "|エラー|오류|에러|실패|불합격|미통과)"
    "(?:用例|测试|测试数|用例数|数量|数|數|件数|수)?"
)
_NUMBER = r"[1-9]\d{0,6}"
_UNIT = r"(?:\s?[个個処处件条條項项건개])?"
_MORE = r"(?=\s*$|[,;](?:\s|$)|[、，；。|/)）]|\.\s*$|\s[|/·│-]\s|\s{2,}\S)"
_TOTAL = (
    r"(?:summary|total|gesamt|anzahl(?: der)?|nombre d['’e]\s?|número de|numero di|liczba|počet"
    r"|aantal|antall?|всего|итого|总计|合计|合計|共|发现|検出)\s?"
)
# What may stand before a count: the start of a line, with a name and a colon, or another count.
_BEFORE = (
    rf"(?:^\W{{0,8}}(?:[^\W\d]{{1,20}}(?: [^\W\d]{{1,20}})?!?\s{{0,8}}[:：\u2014-]\s{{0,8}})?"
    rf"(?:{_TOTAL})?"
    r"|[,;|/(·│]\s{1,3}|[、，；（]\s?)"
)
# As gettext's tools say `found 3 fatal errors`.
_FOUND = (
    r"(?:gefunden|aufgetreten|trouvée?s?|encontrad[oa]s?|se encontr(?:ó|aron)|trovat[oi]"
    r"|найден[аоы]?|знайден[аоі]?|znalezion[oy]|nalezen[aoy]?|gevonden|hittade?s?|fundet|funnet"
    r"|bulundu)"
)
# A number of errors above zero, alone or in a list: `Fehler: 3`, `12 réussites, 2 échecs`.
COUNTS = (
    rf"{_BEFORE}(?:{_ERRORS})\s{{0,8}}[:：=]\s{{0,12}}{_NUMBER}{_MORE}",
    rf"{_BEFORE}{_NUMBER}\s(?:{_ERRORS})(?:\([a-z]{{1,3}}\))?(?: {_FOUND})?{_MORE}",
    rf"{_BEFORE}(?:[^\W\d]{{1,20}} ){{0,3}}{_FAILED}(?: [^\W\d]{{1,20}})?\s{{0,8}}[:=]"
    rf"\s{{0,12}}{_NUMBER}{_MORE}",
    rf"{_BEFORE}{_NUMBER} (?:[^\W\d]{{1,20}} )?{_FAILED}{_MORE}",
    # Without colons, beside another number: `Тесты: пройдено 3, провалено 2`.
    rf"^(?=.{{0,200}}?\d.{{0,200}}?\b\d)(?:.{{0,200}}?)(?:{_BEFORE}){_FAILED}\s{{1,8}}{_NUMBER}{_MORE}",
    rf"\bgeçen:?\s{{1,8}}\d{{1,7}}, kalan:?\s{{1,8}}{_NUMBER}{_MORE}",
    rf"^\W{{0,8}}(?:{_ERRORS}) \({_NUMBER}\)\s*$",
    rf"^\W{{0,8}}{_FOUND} {_NUMBER} (?:{_ERRORS}){_MORE}",
    rf"{_BEFORE}(?:{_ERRORS_OF_CJK})\s?[:：=]?\s{{0,12}}{_NUMBER}{_UNIT}{_MORE}",
    rf"{_BEFORE}{_NUMBER}{_UNIT}の?\s?(?:致命)?(?:{_ERRORS_OF_CJK}){_MORE}",
)
# How MSBuild ends: in German, French, Spanish, Italian, Japanese, Korean, Polish, Portuguese,
# Russian, Turkish, Chinese and Czech.
BUILD_FAILED = (
    "fehler beim buildvorgang|échec de la build|error al compilar|compilazione non riuscita"
    "|ビルドに失敗しました|빌드하지 못했습니다|kompilacja nie powiodła się|falha da compilação"
    "|ошибка сборки|oluşturma başarisiz oldu|oluşturma başarısız oldu|生成失败|建置失敗"
    "|sestavení se nezdařilo"
)
